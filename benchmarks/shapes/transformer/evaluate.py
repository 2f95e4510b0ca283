"""Does a scale policy improve the images of a model? Paired by caption and noise, scored by the exact checker.

First the strength of LogN is chosen for each size, on separate captions; then off, LogN, LogNoRoot and the chosen
strength are compared on other captions. pictures.csv has a row for each image, so a run that was stopped can be
continued; summary.csv and the printed table have means and paired differences to off, with 95 % intervals.

    python -m benchmarks.shapes.transformer.evaluate --model model/ --out runs/evaluation
    python -m benchmarks.shapes.transformer.evaluate --model model/ --out runs/training-size --sizes 64 --captions 200
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import append_rows, new_parser, read_rows, write_rows
from benchmarks.shapes.transformer.paired import FIELDS, best_strength, summary
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request, held_out, random_request

IMAGE_FIELDS = ("split", "size", "policy", "caption", "seed", "asked", "found", "presence", "count", "binding")
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0)
BATCH = 20


def requests(split: str, total: int) -> list[Request]:
    """Different requests without held-out kinds and pairs. Each caption is in one split; a quarter are in "choose"."""
    if split not in ("choose", "report"):
        raise ValueError(f"split: expected 'choose' or 'report', got {split!r}")
    rng, chosen = random.Random(f"transformer-{split}"), {}
    while len(chosen) < total:
        request = random_request(rng)
        mine = "choose" if random.Random(request.caption()).random() < 0.25 else "report"
        if mine == split and not held_out().touches(request):
            chosen[request.caption()] = request
    return list(chosen.values())


def settings(args) -> dict:
    """What all images of a folder have in common."""
    weights = args.model / "transformer" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {"transformer_sha256": digest, "steps": args.steps, "guidance_scale": args.guidance_scale}


def claim(out: Path, mine: dict) -> None:
    """Write the settings of a new folder.

    Raises:
        ValueError: the images in the folder were made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != mine:
        raise ValueError(
            f"--out {out}: expected the settings of its images, {path.read_text()}, got {json.dumps(mine)}"
        )
    path.write_text(json.dumps(mine))


class Images:
    """The rows of pictures.csv; missing ones are made."""

    def __init__(self, args):
        from diffusers import DiffusionPipeline

        self.pipe = DiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance_scale = args.steps, args.guidance_scale
        self.path = args.out / "pictures.csv"
        self.rows: dict[tuple, dict] = {self._key(row): row for row in read_rows(self.path)}

    @staticmethod
    def _key(row: dict) -> tuple:
        return row["split"], int(row["size"]), row["policy"], row["caption"]

    def __call__(self, split: str, size: int, name: str, policy, wanted: list[Request], bar: tqdm) -> list[dict]:
        missing = [(i, r) for i, r in enumerate(wanted) if (split, size, name, r.caption()) not in self.rows]
        bar.update(len(wanted) - len(missing))
        for at in range(0, len(missing), BATCH):
            batch = missing[at : at + BATCH]
            with ea.apply(self.pipe, scale=policy):
                images = self.pipe(
                    [r.caption() for _, r in batch], height=size, width=size, num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=[torch.Generator().manual_seed(i) for i, _ in batch],
                ).images  # fmt: skip
            rows = []
            for (i, request), image in zip(batch, images, strict=True):
                score = check(image, request)
                rows.append({"split": split, "size": size, "policy": name, "caption": request.caption(), "seed": i,
                             "asked": request.total, "found": len(score.found), "presence": int(score.presence),
                             "count": int(score.count), "binding": int(score.binding)})  # fmt: skip
            append_rows(self.path, rows, IMAGE_FIELDS)
            self.rows |= {self._key(row): row for row in rows}
            bar.update(len(batch))
        return [self.rows[split, size, name, r.caption()] for r in wanted]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures.csv and summary.csv")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 96, 128], help="image sizes in pixels (default 64 96 128)"
    )
    parser.add_argument("--captions", type=int, default=300, help="captions for the report (default %(default)s)")
    parser.add_argument(
        "--choose", type=int, default=60, help="captions for choosing the strength; 0: no choice (default 60)"
    )
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default %(default)s")
    args = parser.parse_args()
    if any(size % 16 or size < 32 for size in args.sizes):
        parser.error(f"--sizes: expected multiples of 16 from 32, got {args.sizes}")
    claim(args.out, settings(args))
    images = Images(args)
    report, choose = requests("report", args.captions), requests("choose", args.choose)
    off = {"off": ea.scale.Fixed()}
    strengths = {f"strength {s:g}": ea.scale.LogN(strength=s) for s in STRENGTHS}
    elsewhere = [size for size in args.sizes if size != images.pipe.default_image_size]
    per_size = args.choose * (1 + len(strengths)) + args.captions * (4 if args.choose else 3)
    total = len(elsewhere) * per_size + (len(args.sizes) - len(elsewhere)) * args.captions
    rows = []
    with tqdm(total=total, desc="images", mininterval=2) as bar:
        for size in args.sizes:
            if size not in elsewhere:  # all policies are 1 at the training size
                rows += summary(size, {"off": images("report", size, "off", off["off"], report, bar)})
                continue
            policies = off | {"LogN": ea.scale.LogN(), "LogNoRoot": ea.scale.LogNoRoot()}
            if args.choose:
                tried = {n: images("choose", size, n, p, choose, bar) for n, p in (off | strengths).items()}
                best = best_strength(tried)
                policies[f"chosen: {best}"] = (off | strengths)[best]
            rows += summary(size, {n: images("report", size, n, p, report, bar) for n, p in policies.items()})
    write_rows(args.out / "summary.csv", rows, FIELDS)
    table = Table(*FIELDS)
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=190).print(table)


if __name__ == "__main__":
    main()
