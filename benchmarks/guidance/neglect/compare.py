"""Does guidance mend neglect? Methods beside their controls, on images that lack an object and on images that do not.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance.neglect.compare --model runs/neglect/model --methods
    OMP_NUM_THREADS=1 python -m benchmarks.guidance.neglect.compare --model runs/neglect/model --failed 350

The first command is the second half of the gate: the oracle map alone, which has to mend more than another seed does.
Strengths are chosen on other captions, for each window of guided steps: the one with the highest share of mended minus
share of damaged images, the weaker one of equals. Then come the first images without guidance that lack an object, and
the first that do not. p is McNemar's exact test by image against another seed, with Holm's correction over the arms;
shares have Wilson's 95 % interval. A random direction has the steps and the lengths of the method that it names.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, add_commit, add_csv, new_parser, positive, write_rows
from benchmarks.guidance.arms import TSAM_ARMS
from benchmarks.guidance.neglect.captions import OBJECTS
from benchmarks.guidance.neglect.images import (
    CHOSEN_ON,
    OFF,
    ORACLE,
    OTHER_SEED,
    RANDOM,
    REPORTED,
    STEPS,
    Arm,
    Case,
    Images,
    batches,
    cases,
    load,
)
from entropy_attn.bench.machine import machine, version
from entropy_attn.evaluation.statistics import holm, mcnemar, proportion

TABLE, IMAGES, SELECTION = (RESULTS / f"neglect{name}.csv" for name in ("", "_images", "_selection"))
METHODS = ("tsam-released", "tsam-paper", "attend-and-excite", "conform", "syngen")
# Of a method: its paper's (T-SAM 40, others 20) by the number of latents, which is a sixteenth, and 8 times that
ALPHAS = {
    **dict.fromkeys(TSAM_ARMS, (2.5, 20.0)),
    **dict.fromkeys(("attend-and-excite", "conform", "syngen"), (1.25, 10.0)),
    ORACLE: (80.0, 320.0, 1280.0),
}
WINDOWS = ("0-6", "3-6")
CAPTIONS = {REPORTED: 60, CHOSEN_ON: 100}
SEEDS = 1000  # taken in order until there are enough images
Sets = tuple[list[Case], list[Case]]


def window(text: str) -> str:
    """An option's value, the first and last guided step."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or not int(match[1]) <= int(match[2]) < STEPS:
        raise argparse.ArgumentTypeError(f"expected FIRST-LAST from 0-0 to {STEPS - 1}-{STEPS - 1}, got {text!r}")
    return text


def sets_of(images: Images, pipe: Any, captions: int, objects: int, failed: int, succeeded: int) -> Sets:
    """The first images without guidance that lack an object, and the first that do not, in the order of the seeds."""
    found: dict[bool, list[Case]] = {False: [], True: []}
    with tqdm(total=failed + succeeded, desc="without guidance") as bar:
        for batch in batches(cases(captions, objects, CAPTIONS[captions], range(1, SEEDS))):
            for case, present in images.presence(pipe, Arm(OFF), batch, lambda _: None).items():
                if len(found[present]) < (succeeded if present else failed):
                    found[present].append(case)
                    bar.update()
            if (len(found[False]), len(found[True])) == (failed, succeeded):
                break
    return found[False], found[True]


def shares(images: Images, pipe: Any, arm: Arm, sets: Sets, bar: tqdm) -> tuple[list[bool], list[bool]]:
    """Under this arm: which images of the first set are mended, which of the second are damaged."""
    bar.set_postfix_str(" ".join(arm.key))
    mended, kept = (list(images.presence(pipe, arm, each, bar.update).values()) for each in sets)
    return mended, [not present for present in kept]


def choose(images: Images, pipe: Any, arms: list[tuple[str, str]], sets: Sets) -> list[dict[str, Any]]:
    """A row for each arm (name, guided steps) and strength, and whether it is chosen."""
    rows = []
    with tqdm(total=sum(len(ALPHAS[name]) for name, _ in arms) * sum(map(len, sets)), desc="strengths") as bar:
        for name, guided in arms:
            tried = []
            for alpha in ALPHAS[name]:
                mended, damaged = shares(images, pipe, Arm(name, f"{alpha:g}", guided), sets, bar)
                counts = {"failed": len(mended), "mended": sum(mended), "succeeded": len(damaged)}
                row = {"arm": name, "guided": guided, "alpha": f"{alpha:g}", **counts, "damaged": sum(damaged)}
                row["criterion"] = sum(mended) / len(mended) - sum(damaged) / len(damaged)
                tried.append(row)
            best = max(tried, key=lambda row: (row["criterion"], -float(row["alpha"])))
            rows += [row | {"chosen": int(row is best), "criterion": f"{row['criterion']:.4f}"} for row in tried]
    return rows


def summarize(found: dict[Arm, tuple[list[bool], list[bool]]]) -> list[dict[str, Any]]:
    """A row for each arm: shares with intervals, and p against another seed on the images that failed.

    Args:
        found: {arm: (mended, damaged)}, with `OTHER_SEED` among the arms.
    """
    other = found[Arm(OTHER_SEED)][0]
    tested = [arm for arm in found if arm.name != OTHER_SEED]
    p = {arm: mcnemar(other, found[arm][0]) for arm in tested}
    adjusted = dict(zip(tested, holm([p[arm] for arm in tested]), strict=True))
    rows = []
    for arm, (mended, damaged) in found.items():
        row: dict[str, Any] = {"arm": arm.name, "guided": arm.guided, "alpha": arm.alpha}
        for name, whole, values in (("mended", "failed", mended), ("damaged", "succeeded", damaged)):
            row |= {whole: len(values), name: sum(values)}
            share = proportion(sum(values), len(values))
            ends = zip(("", "_low", "_high"), share, strict=True)
            row |= {f"{name}_share{end}": f"{value:.4f}" for end, value in ends}
        row["more_than_seed"] = sum(a and not b for a, b in zip(mended, other, strict=True))
        row["less_than_seed"] = sum(b and not a for a, b in zip(mended, other, strict=True))
        row |= {"p": f"{p[arm]:.3g}", "p_holm": f"{adjusted[arm]:.3g}"} if arm in p else {"p": "", "p_holm": ""}
        rows.append(row)
    return rows


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the folder that training exported")
    parser.add_argument("--methods", nargs="*", choices=list(ALPHAS), default=METHODS, help="none for the gate")
    parser.add_argument("--random", nargs="*", choices=METHODS, default=METHODS, help="methods with a random direction")
    parser.add_argument("--objects", type=int, choices=OBJECTS, default=3, help="of a caption (default %(default)s)")
    parser.add_argument(
        "--guided", nargs="+", type=window, default=WINDOWS, help="first and last guided step (default %(default)s)"
    )
    parser.add_argument("--failed", type=positive, default=350, help="images that lack an object (default %(default)s)")
    parser.add_argument("--succeeded", type=positive, default=200, help="images that do not (default %(default)s)")
    parser.add_argument(
        "--tried", type=positive, nargs=2, default=(40, 20), metavar=("FAILED", "SUCCEEDED"),
        help="images that choose the strengths (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--images", type=Path, default=IMAGES, help="a row for each image; existing rows are kept")
    parser.add_argument("--selection", type=Path, default=SELECTION, help="a row for each strength that was tried")
    add_csv(parser, TABLE)
    add_commit(parser)
    args = parser.parse_args()

    images, pipe = Images(args.images), load(args.model)
    names = [ORACLE, *(name for name in args.methods if name != ORACLE)]
    chosen_on = sets_of(images, pipe, CHOSEN_ON, args.objects, *args.tried)
    tried = choose(images, pipe, [(name, guided) for name in names for guided in args.guided], chosen_on)
    write_rows(args.selection, tried)
    arms = [Arm(OTHER_SEED)]
    for row in (row for row in tried if row["chosen"]):
        settings = row["alpha"], row["guided"]
        arms.append(Arm(row["arm"], *settings))
        if row["arm"] in args.random:
            arms.append(Arm(RANDOM + row["arm"], *settings))
    sets = sets_of(images, pipe, REPORTED, args.objects, args.failed, args.succeeded)
    with tqdm(total=len(arms) * sum(map(len, sets)), desc="arms") as bar:
        found = {arm: shares(images, pipe, arm, sets, bar) for arm in arms}
    about = machine(torch.device("cpu"), args.commit)
    del about["driver"], about["triton"]
    more = {"objects": args.objects, "steps": STEPS}
    write_rows(args.csv, [row | more | {"diffusers": version("diffusers")} | about for row in summarize(found)])


if __name__ == "__main__":
    main()
