"""What a scale policy does to the pictures of a model, paired by caption and noise, marked by the exact checker.

First the strength of LogN is chosen for each size on captions of its own; then off, LogN, LogNoRoot and the strength
chosen are compared on other captions. Every picture is a row of pictures.csv, so that a run that was stopped goes on
where it was; summary.csv and the table hold the means and the paired differences to off with 95 % intervals.

example:
    python -m benchmarks.shapes.transformer.evaluate --model model/ --out runs/evaluation
    python -m benchmarks.shapes.transformer.evaluate --model model/ --out runs/training-size --sizes 64 --captions 200
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.shapes.transformer.paired import FIELDS, best_strength, summary
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request, held_out, random_request

PICTURE = ("split", "size", "policy", "caption", "seed", "asked", "found", "presence", "count", "binding")
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0)
BATCH = 20


def requests(split: str, total: int) -> list[Request]:
    """Distinct requests that touch nothing held out. Each caption belongs to one split, a quarter to "choose"."""
    if split not in ("choose", "report"):
        raise ValueError(f"split: got {split!r}; allowed are 'choose' and 'report'")
    rng, chosen = random.Random(f"transformer-{split}"), {}
    while len(chosen) < total:
        request = random_request(rng)
        mine = "choose" if random.Random(request.caption()).random() < 0.25 else "report"
        if mine == split and not held_out().touches(request):
            chosen[request.caption()] = request
    return list(chosen.values())


def settings(args) -> dict:
    """What every picture of a folder has in common."""
    weights = args.model / "transformer" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {"transformer_sha256": digest, "steps": args.steps, "guidance_scale": args.guidance_scale}


def claim(out: Path, mine: dict) -> None:
    """Write the settings of a new folder, or raise ``ValueError`` where its pictures were made with others."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != mine:
        raise ValueError(f"--out {out}: its pictures were made with {path.read_text()}, not with {json.dumps(mine)}")
    path.write_text(json.dumps(mine))


class Pictures:
    """Rows of pictures.csv, made where they are missing."""

    def __init__(self, args):
        from diffusers import DiffusionPipeline

        self.pipe = DiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance_scale = args.steps, args.guidance_scale
        self.path = args.out / "pictures.csv"
        self.rows: dict[tuple, dict] = {}
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = {self._key(row): row for row in csv.DictReader(file)}
        else:
            self.path.write_text(",".join(PICTURE) + "\n")

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
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, PICTURE)
                for (i, request), image in zip(batch, images, strict=True):
                    score = check(image, request)
                    row = {"split": split, "size": size, "policy": name, "caption": request.caption(), "seed": i,
                           "asked": request.total, "found": len(score.found), "presence": int(score.presence),
                           "count": int(score.count), "binding": int(score.binding)}  # fmt: skip
                    self.rows[self._key(row)] = row
                    writer.writerow(row)
            bar.update(len(batch))
        return [self.rows[split, size, name, r.caption()] for r in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures.csv and summary.csv")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128], help="pixels (default 64 96 128)")
    parser.add_argument("--captions", type=int, default=300, help="captions reported (default %(default)s)")
    parser.add_argument("--choose", type=int, default=60, help="captions to choose on; 0: no choice (default 60)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="default %(default)s")
    args = parser.parse_args()
    if any(size % 16 or size < 32 for size in args.sizes):
        parser.error(f"--sizes: got {args.sizes}; allowed are multiples of 16 from 32")
    claim(args.out, settings(args))
    pictures = Pictures(args)
    report, choose = requests("report", args.captions), requests("choose", args.choose)
    off = {"off": ea.scale.Fixed()}
    strengths = {f"strength {s:g}": ea.scale.LogN(strength=s) for s in STRENGTHS}
    elsewhere = [size for size in args.sizes if size != pictures.pipe.default_image_size]
    per_size = args.choose * (1 + len(strengths)) + args.captions * (4 if args.choose else 3)
    total = len(elsewhere) * per_size + (len(args.sizes) - len(elsewhere)) * args.captions
    rows = []
    with tqdm(total=total, desc="pictures", mininterval=2) as bar:
        for size in args.sizes:
            if size not in elsewhere:  # every policy is 1 there
                rows += summary(size, {"off": pictures("report", size, "off", off["off"], report, bar)})
                continue
            policies = off | {"LogN": ea.scale.LogN(), "LogNoRoot": ea.scale.LogNoRoot()}
            if args.choose:
                tried = {n: pictures("choose", size, n, p, choose, bar) for n, p in (off | strengths).items()}
                best = best_strength(tried)
                policies[f"chosen: {best}"] = (off | strengths)[best]
            rows += summary(size, {n: pictures("report", size, n, p, report, bar) for n, p in policies.items()})
    with (args.out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*FIELDS)
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=190).print(table)


if __name__ == "__main__":
    main()
