"""Faults planted in compiled kernels: each barrier, wait, fence, arrival, commit and predicate is removed in turn.

    python -m tests.emulation.mutants --out benchmarks/results/mutants.csv

The card finds a mutant, or its result is wrong, or it survives; `redundant` checks why a surviving mutant is harmless.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import resource
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from .card import emulated
from .cases import Case, run
from .parse import Instruction
from .program import Finding, Program
from .redundant import reason

REMOVED = {
    "barrier": r"(bar|barrier)\.(sync|warp)",
    "copy wait": r"cp\.async\.wait_group",
    "copy commit": r"cp\.async\.commit_group",
    "product wait": r"wgmma\.wait_group",
    "product commit": r"wgmma\.commit_group",
    "product fence": r"wgmma\.fence",
    "proxy fence": r"fence\.proxy\.async",
    "arrival": r"mbarrier\.arrive",
    "initialisation": r"mbarrier\.init",
    "invalidation": r"mbarrier\.inval",
}
MOST_MEMORY = 8 * 2**30
KEY = ("target", "case", "kernel", "fault", "line")
GUARDED = r"(ld|st|cp|mbarrier|tensormap)\b"
# Each with several lengths, which share one compiled kernel but use its loops and predicates differently.
SUITE = {
    "forward": [
        f"seqlen_q={m} seqlen_k={n}" for m, n in ((70, 200), (6, 420), (200, 56), (70, 8), (6, 100), (70, 127))
    ],
    "forward, causal": [f"causal=True seqlen_q={m} seqlen_k={n}" for m, n in ((300, 310), (6, 200))],
    "forward, unaligned": [
        f"head_dim=40 head_dim_v=40 layout=padded seqlen_q={m} seqlen_k={n}"
        for m, n in ((5, 77), (70, 133), (130, 3), (6, 210))
    ],
    "map": [f"heads=3 heads_kv=3 seqlen_q={m} seqlen_k=77 map_stop=77" for m in (70, 6, 200)],
    "swept map": [
        f"heads=3 heads_kv=3 seqlen_q={m} seqlen_k={n} map_start=3 map_stop={s}"
        for m, n, s in ((70, 150, 100), (6, 133, 131))
    ],
    "backward": [
        f"seqlen_q={m} seqlen_k={n} grads=grad_out+grad_lse+grad_entropy"
        for m, n in ((70, 100), (6, 330), (330, 6), (130, 130), (300, 7))
    ],
    "rotated": [f"schedule=rotated seqlen_q={m} seqlen_k={n}" for m, n in ((70, 200), (6, 70), (200, 300))],
    "pingpong": [
        f"schedule=pingpong groups=2 heads=1 heads_kv=1 seqlen_q={m} seqlen_k={n}"
        for m, n in ((70, 600), (6, 100), (200, 300))
    ],
    "specialized": [f"schedule=specialized seqlen_q={m} seqlen_k={n}" for m, n in ((60, 192), (6, 64), (6, 320))],
}


@dataclass(frozen=True)
class Mutant:
    original: Program
    index: int  # of the instruction
    kind: str

    @property
    def instruction(self) -> Instruction:
        return self.original.kernel.code[self.index]

    def program(self) -> Program:
        how = {"predicate": "unguarded", "phase wait": "yes"}.get(self.kind, "removed")
        return self.original.changed(self.index, how)


def mutants(original: Program) -> Iterator[Mutant]:
    """All mutants of a program, in the order of its instructions."""
    for index, i in enumerate(original.kernel.code):
        for kind, pattern in REMOVED.items():
            if re.match(pattern, i.op):
                yield Mutant(original, index, kind)
        if i.op.startswith("mbarrier.try_wait"):
            yield Mutant(original, index, "phase wait")
        if i.guard is not None and re.match(GUARDED, i.op):
            yield Mutant(original, index, "predicate")


def launched(cases: list[Case]) -> dict[str, Program]:
    """The programs that the cases launch, by their PTX."""
    seen: dict[str, Program] = {}

    def keep(program: Program) -> Program:
        return seen.setdefault(program.text, program)

    for case in cases:
        with emulated(case.target, edit=keep):
            run(case)
    return seen


def judge(cases: list[Case], mutant: Mutant) -> str:
    """What reveals a mutant first: "found: <kind>" or "wrong result"; otherwise "survived"."""
    return tried(cases, mutant.program())


def tried(cases: list[Case], other: Program) -> str:
    for case in cases:
        try:
            with emulated(case.target, edit=lambda p: other if p.text == other.text else p, limit=3_000_000):
                run(case)
        except Finding as found:
            return f"found: {found.kind}"
        except AssertionError:
            return "wrong result"
    return "survived"


def sweep(
    targets: list[str], names: list[str], keep: Callable[[Mutant], bool] = lambda m: True, done: Collection[tuple] = ()
) -> Iterator[dict]:
    """A row for each mutant whose `KEY` is not in `done`; a program is tested in the first case that launches it.

    `keep` is called for every mutant, in an order that does not depend on `done`.
    """
    seen: set[str] = set()
    for target, name in ((t, n) for t in targets for n in names):
        if target != "sm_90" and name in ("rotated", "specialized", "pingpong"):
            continue
        cases = [Case.parse(f"target={target} {line}") for line in SUITE[name]]
        for number, (text, original) in enumerate(launched(cases).items()):
            if text in seen:
                continue
            seen.add(text)
            for mutant in filter(keep, mutants(original)):
                row = {
                    "target": target, "case": name, "kernel": f"{original.kernel.name} {number}", "fault": mutant.kind,
                    "line": mutant.instruction.line,
                }  # fmt: skip
                if tuple(str(row[k]) for k in KEY) in done:
                    continue
                verdict = judge(cases, mutant)
                yield row | {
                    "verdict": verdict, "instruction": mutant.instruction.text[:100],
                    "source": mutant.instruction.source.split(" @")[0],
                    "redundant": reason(mutant, cases, tried) if verdict == "survived" else "",
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the CSV file")
    parser.add_argument("--targets", nargs="+", default=["sm_80", "sm_90"], help="default: sm_80 sm_90")
    parser.add_argument("--cases", nargs="+", default=list(SUITE), choices=list(SUITE), help="default: all")
    parser.add_argument("--anew", action="store_true", help="also repeat the faults that the file has")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after this time; the same command continues"
    )
    given = parser.parse_args()
    # a fault that makes memory grow ends this process only
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    if given.anew:
        given.out.unlink(missing_ok=True)
    rows, started = [], time.time()
    if given.out.exists():
        with given.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {tuple(row[k] for k in KEY) for row in rows}
    with given.out.open("a", newline="") as file:
        writer = None
        for row in sweep(given.targets, given.cases, done=done):
            writer = writer or csv.DictWriter(file, list(row), lineterminator="\n")
            if not rows:
                writer.writeheader()
            rows.append(row)
            writer.writerow(row)
            file.flush()
            if time.time() - started > given.seconds:
                print("stopped before the end")
                break
    print(summary(rows), f"{time.time() - started:.0f} s")
    raise SystemExit(any(r["verdict"] == "survived" and not r["redundant"] for r in rows))


def summary(rows: list[dict]) -> str:
    explained = [r for r in rows if r["redundant"]]
    seen = [r for r in rows if r["verdict"].startswith(("found", "wrong"))]
    asked = len(rows) - len(explained)
    return f"{len(seen)} of {asked} seen ({len(seen) / max(1, asked):.1%}); {len(explained)} more are redundant"


if __name__ == "__main__":
    main()
