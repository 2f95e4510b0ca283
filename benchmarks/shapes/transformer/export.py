"""Write a checkpoint as an ordinary diffusers folder in fp16, or as the small state that training can go on from.

example:
    python -m benchmarks.shapes.transformer.export --work runs/transformer --out model/
    python -m benchmarks.shapes.transformer.export --state benchmarks/shapes/transformer/state --out model/
    python -m benchmarks.shapes.transformer.export --work runs/transformer --write-state benchmarks/shapes/transformer/state
"""  # noqa: E501 (a command that can be copied)

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.shapes.transformer.files import load_state, write_state
from benchmarks.shapes.transformer.model import pipeline, transformer, vae

LIMIT = 16 * 2**20
# The tokenizer's class by the name that transformers 4 and 5 both know; 5 writes one of its own.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def load_checkpoint(work: Path | None, state: Path | None):
    """The autoencoder, the averaged transformer and its step, float32, from a work folder or a committed state."""
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
    denoiser = transformer(width, layers)
    denoiser.load_state_dict(weights)
    return autoencoder.eval(), denoiser.eval(), latest["step"]


def export(work: Path | None, state: Path | None, out: Path) -> tuple[int, int]:
    """Write the pipeline; returns the step and the bytes of all safetensors."""
    autoencoder, denoiser, step = load_checkpoint(work, state)
    pipeline(autoencoder, denoiser).to(torch.float16).save_pretrained(out, safe_serialization=True)
    for file in (out / "model_index.json", out / "tokenizer" / "tokenizer_config.json"):
        file.write_text(file.read_text().replace('"TokenizersBackend"', f'"{TOKENIZER_CLASS}"'))
    return step, sum(file.stat().st_size for file in out.rglob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--work", type=Path, help="train.py's folder")
    source.add_argument("--state", type=Path, help="a committed state")
    parser.add_argument("--out", type=Path, help="write the pipeline here")
    parser.add_argument("--write-state", type=Path, help="write the state here (needs --work)")
    args = parser.parse_args()
    if args.out is None and args.write_state is None:
        parser.error("nothing to write: give --out, --write-state or both")
    if args.write_state and args.work is None:
        parser.error("--write-state needs --work: it is written from a training folder")
    if args.write_state:
        print(f"{args.write_state}: step {write_state(args.work, args.write_state)}")
    if args.out:
        step, size = export(args.work, args.state, args.out)
        print(f"{args.out}: step {step}, {size / 2**20:.1f} MiB of weights")
        if size > LIMIT:
            raise SystemExit(f"{args.out}: {size} bytes of weights; allowed are {LIMIT}")


if __name__ == "__main__":
    main()
