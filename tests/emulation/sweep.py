"""Every call of tables.py on its emulated card, with a row for each kernel that it launches.

    python -m tests.emulation.sweep --out benchmarks/results/emulation.csv

Rows are appended as they are computed, and calls that are in the file are not run again.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import time
from collections.abc import Iterable
from pathlib import Path

from .card import emulated
from .cases import Case, refused, run
from .program import Counts, Finding
from .tables import everything

CLASSES = ("integer", "float", "special function", "conversion", "move", "global load", "global store", "shared load")
CLASSES += ("shared store", "copy", "matrix", "shuffle", "barrier", "branch")
FIELDS = ["target", "kernel", "call", "programs", "error_of_budget", "finding", "instructions", *CLASSES]
FIELDS += ["sectors_per_ideal", "wavefronts_per_ideal", "contested_bytes"]


def judged(line: str) -> list[dict]:
    """The rows of one call; they contain what was found, and nothing is raised."""
    case = Case.parse(line)
    errors: dict[str, tuple[float, float]] = {}
    finding = ""
    with emulated(case.target) as card:
        why = refused(case)
        if why:
            return [{"target": case.target, "call": line, "finding": f"refused: {why[0]}"}]
        try:
            errors = run(case)
        except (Finding, AssertionError, NotImplementedError) as error:
            finding = str(error).replace("\n", " | ")
    worst = max((error / budget for error, budget in errors.values() if budget), default=0.0)
    kernels: dict[str, tuple[int, Counts]] = {}
    for one in card.launches:
        programs, counts = kernels.get(one.kernel, (0, Counts({})))
        kernels[one.kernel] = programs + one.grid[0], counts + one.counts
    rows = [_row(case, line, kernel, *found) for kernel, found in kernels.items()]
    rows = rows or [{"target": case.target, "call": line}]
    for row in rows:
        row |= {"error_of_budget": f"{worst:.3f}", "finding": finding}
    return rows


def _row(case: Case, line: str, kernel: str, programs: int, counts: Counts) -> dict:
    return {
        "target": case.target, "kernel": kernel, "call": line, "programs": programs,
        "instructions": sum(counts.executed.values()),
        **{name: counts.executed.get(name, 0) for name in CLASSES},
        "sectors_per_ideal": f"{counts.global_sectors / max(1, counts.global_ideal):.2f}",
        "wavefronts_per_ideal": f"{counts.shared_wavefronts / max(1, counts.shared_ideal):.2f}",
        "contested_bytes": counts.contested,
    }  # fmt: skip


def sweep(lines: Iterable[str], out: Path, processes: int, most_seconds: float = math.inf) -> list[dict]:
    done = set()
    if out.exists():
        with out.open(newline="") as file:
            done = {row["call"] for row in csv.DictReader(file)}
    todo = [line for line in dict.fromkeys(lines) if line not in done]
    rows, started = [], time.time()
    with out.open("a", newline="") as file, multiprocessing.get_context("spawn").Pool(processes) as pool:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for found in pool.imap(judged, todo):
            rows += found
            writer.writerows(found)
            file.flush()
            for row in found:
                if is_bad(row):
                    print(row["call"], row["finding"], sep="\n  ", flush=True)
            if time.time() - started > most_seconds:
                print(f"{len(done) + len({r['call'] for r in rows})} of {len(done) + len(todo)} calls are in {out}")
                break
    return rows


def is_bad(row: dict) -> bool:
    return bool(row.get("finding")) and not row["finding"].startswith("refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the CSV file")
    parser.add_argument("--targets", nargs="+", help="such as sm_90; default: all")
    parser.add_argument("--anew", action="store_true", help="also repeat the calls that the file has")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each core")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after this time; the same command continues"
    )
    given = parser.parse_args()
    started = time.time()
    if given.anew:
        given.out.unlink(missing_ok=True)
    lines = [str(case) for case in everything() if given.targets is None or case.target in given.targets]
    rows = sweep(lines, given.out, given.processes, given.seconds)
    bad = [r for r in rows if is_bad(r)]
    print(f"{len({r['call'] for r in rows})} calls, {len(bad)} with findings, {time.time() - started:.0f} s")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
