"""Do the maps of the neglecting model predict the neglect? AUC of their statistics at each step: the gate's first half.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance.neglect.maps --model runs/neglect/model
    python -m benchmarks.guidance.neglect.maps --model runs/neglect/model --captions 4 --seeds 1 2 --csv auc.csv

As `benchmarks.guidance.maps_auc`, for maps of 16 x 16 tokens and captions of so many single objects of known kinds: its
three statistics, and the loss of every method, which the method lowers and which should be higher where an object will
be missing. `pooled` compares all images, `within` images of the same caption with different seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import entropy_attn as ea
from benchmarks.common import RESULTS, add_commit, add_csv, append_rows, new_parser, positive, read_rows, write_rows
from benchmarks.guidance.maps_auc import STATISTICS, column, statistics, summarize
from benchmarks.guidance.neglect import compare
from benchmarks.guidance.neglect.captions import OBJECTS, fixed_captions, tokens_of
from benchmarks.guidance.neglect.compare import CAPTIONS, METHODS
from benchmarks.guidance.neglect.images import (
    MAP_SIZE,
    OFF,
    REPORTED,
    STEPS,
    Arm,
    Case,
    Images,
    Row,
    batches,
    cases,
    load,
    make,
)
from benchmarks.guidance.neglect.model import cut_at_caption
from entropy_attn.bench.machine import machine, version
from entropy_attn.integrations.guidance.prompts import prompts_of

TABLE, IMAGES = RESULTS / "neglect_maps.csv", RESULTS / "neglect_maps_images.csv"
KEPT = (0, 1, 2, 3, 4, 5, 6, 9)
SIZE = MAP_SIZE[0]
LOSSES = {f"loss of {name}": Arm(name, "1", "0-0").guidance() for name in METHODS}
MEASURED = (*STATISTICS, *LOSSES)


def measure(pipe: Any, batch: list[Case], kept: tuple[int, ...]) -> tuple[list[Row], list[Row]]:
    """Two rows for each image without guidance: that of `make`, and one with its statistics at each step."""
    objects = batch[0].objects
    recorder = ea.MapRecorder(tokens=range(tokens_of(objects)), size=MAP_SIZE, steps=kept)
    made = make(pipe, Arm(OFF), batch, [recorder])
    cut_at_caption(pipe, objects)
    rows = []
    known = fixed_captions(1 + max(case.caption for case in batch), objects, batch[0].captions)
    prompts = prompts_of(pipe, [known[case.caption].caption() for case in batch], attention=True)
    for index, (case, image) in enumerate(zip(batch, made, strict=True)):
        row = {"seed": str(case.seed), "split": f"{objects} objects", "caption": str(case.caption)}
        row["presence"] = image["presence"]
        for step in kept:
            maps = recorder.maps(step)[0, index].permute(1, 2, 0)
            found = statistics(maps, prompts[index].text)
            found |= {name: float(each.loss(maps, prompts[index])) for name, each in LOSSES.items()}
            row |= {column(name, SIZE, step): f"{found[name]:.6f}" for name in MEASURED}
        rows.append(row)
    return made, rows


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the folder that training exported")
    parser.add_argument("--objects", type=int, choices=OBJECTS, default=3, help="of a caption (default %(default)s)")
    parser.add_argument(
        "--captions", type=positive, default=CAPTIONS[REPORTED], help="number of captions (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3, 4))
    parser.add_argument("--images", type=Path, default=IMAGES, help="a row for each image; existing rows are kept")
    parser.add_argument("--drawn", type=Path, default=compare.IMAGES, help="the same images, as compare reads them")
    add_csv(parser, TABLE)
    add_commit(parser)
    args = parser.parse_args()

    fields = ["seed", "split", "caption", "presence", *(column(s, SIZE, step) for step in KEPT for s in MEASURED)]
    rows = [row for row in read_rows(args.images) if None not in row.values()]  # the last one may be cut off
    write_rows(args.images, rows, fields)
    made = {(row["seed"], row["split"], row["caption"]) for row in rows}
    items, pipe = cases(REPORTED, args.objects, args.captions, args.seeds), load(args.model)
    missing = [c for c in items if (str(c.seed), f"{c.objects} objects", str(c.caption)) not in made]
    drawn = Images(args.drawn)
    with tqdm(total=len(missing), desc="images") as bar:
        for batch in batches(missing):
            of_arm, found = measure(pipe, batch, KEPT)
            drawn.add(of_arm)
            append_rows(args.images, found, fields)
            rows += found
            bar.update(len(batch))
    about = machine(torch.device("cpu"), args.commit)
    del about["driver"], about["triton"]
    versions = {"objects": args.objects, "steps": STEPS, "diffusers": version("diffusers")}
    write_rows(args.csv, [row | versions | about for row in summarize(rows, KEPT, sizes=(SIZE,), statistics=MEASURED)])


if __name__ == "__main__":
    main()
