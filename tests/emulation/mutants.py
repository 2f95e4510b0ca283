"""Faults planted in compiled kernels: each barrier, wait, fence, arrival, commit and predicate is taken out in turn.

    python -m tests.emulation.mutants --out benchmarks/results/mutants.csv

A mutant is found by the card, or gives a wrong result, or survives; who survives must be in ``redundant`` with a reason.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .card import emulated
from .cases import Case, run
from .program import Finding
from .redundant import reason

REMOVED = {
    "barrier": r"(bar\.sync|bar\.warp\.sync|barrier\.sync)\b",
    "copy wait": r"cp\.async\.wait_group\b",
    "copy commit": r"cp\.async\.commit_group\b",
    "product wait": r"wgmma\.wait_group\b",
    "product commit": r"wgmma\.commit_group\b",
    "product fence": r"wgmma\.fence\b",
    "proxy fence": r"fence\.proxy\.async\b",
    "arrival": r"mbarrier\.arrive\b",
    "initialisation": r"mbarrier\.init\b",
    "invalidation": r"mbarrier\.inval\b",
}
GUARDED = r"@!?%\w+ (ld|st|cp|mbarrier|tensormap|ldmatrix|stmatrix)\b"
# Each with lengths that use a kernel's predicates otherwise; the code is the same where the multiples of 16 are.
SUITE = {
    "forward": [f"seqlen_q={m} seqlen_k={n}" for m, n in ((70, 200), (6, 200), (200, 56), (70, 8))],
    "forward, unaligned": [
        f"head_dim=40 head_dim_v=40 layout=padded seqlen_q={m} seqlen_k={n}" for m, n in ((5, 77), (70, 133), (130, 3))
    ],
    "map": [f"heads=3 heads_kv=3 seqlen_q={m} seqlen_k=77 map_stop=77" for m in (70, 6, 200)],
    "swept map": [f"seqlen_q={m} seqlen_k={n} map_start=3 map_stop={s}" for m, n, s in ((70, 150, 100), (6, 133, 131))],
    "backward": [
        f"seqlen_q={m} seqlen_k={n} grads=grad_out+grad_lse+grad_entropy"
        for m, n in ((70, 100), (6, 200), (200, 6), (130, 130))
    ],
    "rotated": [f"schedule=rotated seqlen_q={m} seqlen_k={n}" for m, n in ((70, 200), (6, 70), (200, 300))],
    "specialized": [f"schedule=specialized seqlen_q={m} seqlen_k={n}" for m, n in ((70, 192), (6, 64), (200, 320))],
}


@dataclass(frozen=True)
class Mutant:
    kernel: str
    kind: str
    line: int  # of the PTX
    text: str  # the line as it was
    changed: str  # the whole module


def mutants(ptx: str) -> Iterator[Mutant]:
    """Every one of a module, in order of its lines."""
    kernel = re.search(r"\.entry (\w+)", ptx).group(1)
    lines = ptx.split("\n")
    for number, line in enumerate(lines):
        code = line.split("//")[0].strip()
        bare = re.sub(r"^@!?[%\w]+\s+", "", code)
        kind = next((k for k, pattern in REMOVED.items() if re.match(pattern, bare)), None)
        options = [(kind, "")] if kind else []
        if re.match(r"mbarrier\.try_wait", bare):
            options.append(("phase wait", "\tmov.pred complete, -1;"))
        if re.match(GUARDED, code):
            options.append(("predicate", f"\t{bare}"))
        for what, instead in options:
            changed = [*lines[:number], instead, *lines[number + 1 :]]
            yield Mutant(kernel, what, number + 1, code, "\n".join(changed))


def compiled(cases: list[Case]) -> list[str]:
    """The modules that cases launch, each once."""
    seen: dict[str, None] = {}

    def keep(ptx: str) -> str:
        seen.setdefault(ptx)
        return ptx

    for case in cases:
        with emulated(case.target, edit=keep):
            run(case)
    return list(seen)


def judge(cases: list[Case], original: str, mutant: Mutant) -> str:
    """What tells a mutant first: "found: <kind>", "wrong result", or nothing, and it has "survived"."""
    for case in cases:
        try:
            with emulated(case.target, edit=lambda ptx: mutant.changed if ptx == original else ptx):
                run(case)
        except Finding as found:
            return f"found: {found.kind}"
        except AssertionError:
            return "wrong result"
    return "survived"


def sweep(targets: list[str], names: list[str], keep: Callable[[Mutant], bool] = lambda m: True) -> Iterator[dict]:
    """A row for each mutant; a module is taken in the first case that launches it."""
    done: set[str] = set()
    for target, name in ((t, n) for t in targets for n in names):
        if target != "sm_90" and name in ("rotated", "specialized"):
            continue
        cases = [Case.parse(f"target={target} {line}") for line in SUITE[name]]
        for original in compiled(cases):
            if (target + original) in done:
                continue
            done.add(target + original)
            for mutant in filter(keep, mutants(original)):
                verdict = judge(cases, original, mutant)
                because = reason(mutant) if verdict == "survived" else ""
                yield {
                    "target": target, "case": name, "kernel": mutant.kernel, "fault": mutant.kind,
                    "line": mutant.line, "verdict": verdict, "instruction": mutant.text[:100], "redundant": because,
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=["sm_80", "sm_90"])
    parser.add_argument("--cases", nargs="+", default=list(SUITE), choices=list(SUITE))
    given = parser.parse_args()
    rows, started = [], time.time()
    with given.out.open("w", newline="") as file:
        writer = None
        for row in sweep(given.targets, given.cases):
            writer = writer or csv.DictWriter(file, list(row), lineterminator="\n")
            if not rows:
                writer.writeheader()
            rows.append(row)
            writer.writerow(row)
            file.flush()
    print(summary(rows), f"{time.time() - started:.0f} s")


def summary(rows: list[dict]) -> str:
    explained = [r for r in rows if r["redundant"]]
    seen = [r for r in rows if r["verdict"].startswith(("found", "wrong"))]
    asked = len(rows) - len(explained)
    return f"{len(seen)} of {asked} seen ({len(seen) / max(1, asked):.1%}); {len(explained)} more are redundant"


if __name__ == "__main__":
    main()
