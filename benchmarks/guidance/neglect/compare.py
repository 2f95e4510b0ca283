"""Does guidance mend neglect? Methods beside their controls, on images that lack an object and on images that do not.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance.neglect.compare --model runs/neglect/model --gate
    OMP_NUM_THREADS=1 python -m benchmarks.guidance.neglect.compare --model runs/neglect/model --failed 350

`--gate` runs the controls alone: the second half of the gate is that the oracle map mends more than another seed does.
Strengths are chosen on other captions: the one with the highest share of mended minus share of damaged images, the
weaker one of equals. Then come the first images without guidance that lack an object, and the first that do not. p is
McNemar's exact test by image against another seed, with Holm's correction over the arms; shares have Wilson's 95 %
interval. Every random direction has the steps and the lengths of the method that it names.
"""

from __future__ import annotations

import itertools
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
# In the middle is the strength of the papers, by the number of latents: a sixteenth of theirs (T-SAM 40, others 20).
ALPHAS = {
    **dict.fromkeys(TSAM_ARMS, (0.625, 2.5, 10.0)),
    **dict.fromkeys(("attend-and-excite", "conform", "syngen"), (0.3125, 1.25, 5.0)),
    ORACLE: (20.0, 80.0, 320.0),
}
CAPTIONS, SEEDS = 100, 1000  # of a set; seeds are taken in order until there are enough images
Sets = tuple[list[Case], list[Case]]


def sets_of(images: Images, pipe: Any, captions: int, objects: int, guided: range, failed: int, succeeded: int) -> Sets:
    """The first images without guidance that lack an object, and the first that do not, in the order of the seeds."""
    found: dict[bool, list[Case]] = {False: [], True: []}
    with tqdm(total=failed + succeeded, desc="without guidance") as bar:
        for batch in batches(cases(captions, objects, CAPTIONS, range(1, SEEDS))):
            for case, present in images.presence(pipe, Arm(OFF), batch, guided, lambda _: None).items():
                if len(found[present]) < (succeeded if present else failed):
                    found[present].append(case)
                    bar.update()
            if (len(found[False]), len(found[True])) == (failed, succeeded):
                break
    return found[False], found[True]


def shares(images: Images, pipe: Any, arm: Arm, sets: Sets, guided: range, bar: tqdm) -> tuple[list[bool], list[bool]]:
    """Under this arm: which images of the first set are mended, which of the second are damaged."""
    bar.set_postfix_str(f"{arm.name} {arm.alpha}")
    mended, kept = (list(images.presence(pipe, arm, each, guided, bar.update).values()) for each in sets)
    return mended, [not present for present in kept]


def choose(images: Images, pipe: Any, names: list[str], sets: Sets, guided: range) -> list[dict[str, Any]]:
    """A row for each arm and strength, and whether it is chosen."""
    rows = []
    with tqdm(total=sum(len(ALPHAS[name]) for name in names) * sum(map(len, sets)), desc="strengths") as bar:
        for name in names:
            tried = []
            for alpha in ALPHAS[name]:
                mended, damaged = shares(images, pipe, Arm(name, f"{alpha:g}"), sets, guided, bar)
                counts = {"failed": len(mended), "mended": sum(mended), "succeeded": len(damaged)}
                row = {"arm": name, "alpha": f"{alpha:g}", **counts, "damaged": sum(damaged)}
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
        row: dict[str, Any] = {"arm": arm.name, "alpha": arm.alpha}
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
    parser.add_argument("--gate", action="store_true", help="another seed and the oracle map alone")
    parser.add_argument("--methods", nargs="+", choices=list(ALPHAS), default=METHODS)
    parser.add_argument("--objects", type=int, choices=OBJECTS, default=3, help="of a caption (default %(default)s)")
    parser.add_argument(
        "--guided", type=int, nargs=2, default=(0, 5), help="first guided step and the one after the last"
    )
    parser.add_argument("--failed", type=positive, default=350, help="images that lack an object (default %(default)s)")
    parser.add_argument("--succeeded", type=positive, default=200, help="images that do not (default %(default)s)")
    parser.add_argument("--tried", type=positive, default=40, help="images of either kind that choose the strength")
    parser.add_argument("--images", type=Path, default=IMAGES, help="a row for each image; existing rows are kept")
    parser.add_argument("--selection", type=Path, default=SELECTION, help="a row for each strength that was tried")
    add_csv(parser, TABLE)
    add_commit(parser)
    args = parser.parse_args()

    images, pipe, guided = Images(args.images), load(args.model), range(*args.guided)
    names = [ORACLE] if args.gate else [ORACLE, *(name for name in args.methods if name != ORACLE)]
    chosen_on = sets_of(images, pipe, CHOSEN_ON, args.objects, guided, args.tried, args.tried)
    tried = choose(images, pipe, names, chosen_on, guided)
    write_rows(args.selection, tried)
    best = [Arm(row["arm"], row["alpha"]) for row in tried if row["chosen"]]
    random = [[Arm(RANDOM + arm.name, arm.alpha)] if arm.name != ORACLE else [] for arm in best]
    arms = [Arm(OTHER_SEED), *itertools.chain.from_iterable([a, *r] for a, r in zip(best, random, strict=True))]
    sets = sets_of(images, pipe, REPORTED, args.objects, guided, args.failed, args.succeeded)
    with tqdm(total=len(arms) * sum(map(len, sets)), desc="arms") as bar:
        found = {arm: shares(images, pipe, arm, sets, guided, bar) for arm in arms}
    about = machine(torch.device("cpu"), args.commit)
    del about["driver"], about["triton"]
    more = {"objects": args.objects, "steps": STEPS, "guided": f"{guided.start}-{guided.stop - 1}"}
    write_rows(args.csv, [row | more | {"diffusers": version("diffusers")} | about for row in summarize(found)])


if __name__ == "__main__":
    main()
