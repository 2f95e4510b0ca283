"""Write a checkpoint as a diffusers folder in fp16, or as the small state from which training can continue.

python -m benchmarks.shapes.transformer.export --work runs/transformer --out model/
python -m benchmarks.shapes.transformer.export --state runs/state --out model/
python -m benchmarks.shapes.transformer.export --work runs/transformer --write-state runs/state
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.common import new_parser
from benchmarks.shapes.transformer.card import card
from benchmarks.shapes.transformer.files import load_state, write_state
from benchmarks.shapes.transformer.model import pipeline, transformer, vae

LIMIT = 16 * 2**20
# A class name that transformers 4 and 5 both know; 5 would write a new one.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def load_checkpoint(work: Path | None, state: Path | None):
    """(autoencoder, averaged transformer, step) in float32, from a work folder or a committed state."""
    if work is not None:
        latest = torch.load(work / "transformer.pt", map_location="cpu")
    else:
        latest = load_state(state)
    saved = torch.load((work or state) / "autoencoder.pt", map_location="cpu")
    autoencoder = vae()
    autoencoder.load_state_dict(saved["model"])
    autoencoder.register_to_config(scaling_factor=saved["scaling_factor"])
    weights = latest["averaged"]
    width = weights["x_embedder.weight"].shape[0]
    layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    denoiser = transformer(width, layers, head_dim=weights["layers.0.attn.norm_q.weight"].shape[0])
    denoiser.load_state_dict(weights)
    return autoencoder.eval(), denoiser.eval(), latest["step"]


def export(work: Path | None, state: Path | None, out: Path) -> tuple[int, int]:
    """Write the pipeline and its card; returns the step and the size of all files in bytes."""
    autoencoder, denoiser, step = load_checkpoint(work, state)
    pipe = pipeline(autoencoder, denoiser).to(torch.float16)
    pipe.save_pretrained(out, safe_serialization=True)
    (out / "README.md").write_text(card(pipe, step), encoding="utf-8")
    for file in (out / "model_index.json", out / "tokenizer" / "tokenizer_config.json"):
        file.write_text(file.read_text().replace('"TokenizersBackend"', f'"{TOKENIZER_CLASS}"'))
    return step, sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def main() -> None:
    parser = new_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--work", type=Path, help="the folder of train.py")
    source.add_argument("--state", type=Path, help="a committed state")
    parser.add_argument("--out", type=Path, help="write the pipeline to this folder")
    parser.add_argument("--write-state", type=Path, help="write the state to this folder; needs --work")
    args = parser.parse_args()
    if args.out is None and args.write_state is None:
        parser.error("expected --out, --write-state or both, got neither")
    if args.write_state and args.work is None:
        parser.error("--write-state: expected --work with it, because the state is written from a training folder")
    if args.write_state:
        print(f"{args.write_state}: step {write_state(args.work, args.write_state)}")
    if args.out:
        step, size = export(args.work, args.state, args.out)
        print(f"{args.out}: step {step}, {size / 2**20:.1f} MiB")
        if size > LIMIT:
            raise SystemExit(f"{args.out}: expected at most {LIMIT} bytes, got {size}")


if __name__ == "__main__":
    main()
