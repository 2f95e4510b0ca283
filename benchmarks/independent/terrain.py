"""Does the entropy of attention grow with ln N in a model that nobody here trained, and what does the scale undo?

    OMP_NUM_THREADS=1 python -m benchmarks.independent.download --weights terrain    # first, once: 39 MB
    OMP_NUM_THREADS=1 python -m benchmarks.independent.terrain                       # 264 images: 4 minutes
    python -m benchmarks.independent.terrain --seeds 4 --images images.csv --csv terrain.csv --figure terrain.png

Height fields of several sizes, in one step from noise, with the model's scale ("off") and with LogN. The noise of a
seed is one field of the largest size, of which smaller images take the upper left corner, and the seed has one of three
difficulties. So scales are compared on the same input, and sizes on inputs that overlap.

A run that was stopped can be continued with the same command: the file of `--images` has the rows of each image.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import IMAGES, RESULTS, add_commit, append_rows, new_parser, positive, read_rows, write_rows
from benchmarks.independent.download import add_folder
from benchmarks.independent.terrain_model import SIGMA_MAX, TRAIN_SIZE, Terrain, load
from benchmarks.independent.terrain_summary import CELL, GROUPS, draw, summarize
from entropy_attn.bench.machine import machine, version

SIZES = (64, 96, 128, 160, 192, 256)
SEEDS = 24
DIFFICULTIES = (1, 50, 100)
SCALES = {"off": ea.scale.Fixed(), "logn": ea.scale.LogN()}
FIELDS = ("seed", "difficulty", "size", "scale", *(f"entropy_{tokens}" for tokens in GROUPS), "change")
ROWS = RESULTS / "terrain_images.csv"
FIGURE = IMAGES / "terrain.png"


def noise_of(seed: int, size: int) -> Tensor:
    """The noise (1, 1, size, size) that an image starts from."""
    g = torch.Generator().manual_seed(seed)
    whole = torch.randn(1, 1, max(SIZES), max(SIZES), generator=g)
    return SIGMA_MAX * whole[..., :size, :size]


def difficulty_of(seed: int) -> int:
    return DIFFICULTIES[seed % len(DIFFICULTIES)]


def entropies(recorder: ea.EntropyRecorder, size: int) -> dict[str, str]:
    """Mean entropy in nats of the layers with equally many tokens, by their number of tokens at the training size."""
    columns = recorder.to_columns()
    found = {}
    for tokens, cell in zip(GROUPS, CELL, strict=True):
        pairs = zip(columns["seqlen_k"], columns["mean"], strict=True)
        values = [mean for seqlen, mean in pairs if seqlen == (size // cell) ** 2]
        found[f"entropy_{tokens}"] = f"{sum(values) / len(values):.5f}"
    return found


def trial(terrain: Terrain, seed: int, size: int) -> list[dict[str, str]]:
    """A row for each scale; `change` is the image's distance from that of "off", as a share of the values' range."""
    rows, off = [], None
    for name, scale in scales_at(size).items():
        recorder = ea.EntropyRecorder()
        with ea.apply(terrain.unet, scale=scale, record=recorder):
            image = terrain(noise_of(seed, size), SIGMA_MAX, difficulty_of(seed))
        off = image if off is None else off
        change = (image - off).square().mean().sqrt().item() / 2  # values are from -1 to 1
        about = {"seed": str(seed), "difficulty": str(difficulty_of(seed)), "size": str(size), "scale": name}
        rows.append(about | entropies(recorder, size) | {"change": f"{change:.5f}"})
    return rows


def scales_at(size: int) -> dict[str, ea.scale.Policy]:
    """The scales that differ: at the training size LogN is the model's scale."""
    return {"off": SCALES["off"]} if size == TRAIN_SIZE else SCALES


def finished(path: Path) -> list[dict[str, str]]:
    """The rows of `path` whose image has all scales; the last ones of a run that was stopped may lack some."""
    images: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in read_rows(path):
        if None not in row.values():
            images.setdefault((row["seed"], row["size"]), []).append(row)
    return [row for rows in images.values() if len(rows) == len(scales_at(int(rows[0]["size"]))) for row in rows]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=positive, default=SEEDS, help="number of seeds (default %(default)s)")
    parser.add_argument("--images", type=Path, default=ROWS, help="rows of each image; existing rows are kept")
    parser.add_argument("--csv", type=Path, default=RESULTS / "terrain.csv", help="write means and intervals here")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="write the figure to this file")
    add_folder(parser)
    add_commit(parser)
    args = parser.parse_args()

    rows = finished(args.images)
    have = {(row["seed"], row["size"]) for row in rows}
    jobs = list(itertools.product(range(1, args.seeds + 1), SIZES))
    left = [job for job in jobs if tuple(map(str, job)) not in have]
    if left:
        terrain = load(args.folder)
        write_rows(args.images, rows, FIELDS)
        for job in tqdm(left, desc="images", initial=len(jobs) - len(left), total=len(jobs)):
            rows += (new := trial(terrain, *job))
            append_rows(args.images, new, FIELDS)
    about = machine(torch.device("cpu"), args.commit)
    about = {"diffusers": version("diffusers"), **{name: about[name] for name in ("torch", "commit", "date")}}
    table = [row | about for row in summarize(rows)]
    write_rows(args.csv, table)
    draw(table, args.figure)


if __name__ == "__main__":
    main()
