"""The figures of `entropy-attn bench`, from the rows that are in a folder's bench.csv.

python -m benchmarks.gpu.figures FOLDER
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from entropy_attn.bench.measure import MACHINE
from entropy_attn.plots.benchmark import save_figures

TEXT = {"model", "size", "kind", "task", "pass", "dtype", "implementation", "status", *MACHINE}


def rows_of(path: Path) -> list[dict[str, object]]:
    """As they were measured: numbers as numbers, and no cell where nothing was."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: _value(name, text) for name, text in row.items() if text or name in TEXT} for row in rows]


def _value(name: str, text: str) -> object:
    if name in TEXT:
        return text
    return int(text) if text.lstrip("-").isdigit() else float(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where bench.csv is and the figures go")
    args = parser.parse_args()
    path = args.folder / "bench.csv"
    if not path.exists():
        print(f"{path} is not there: nothing to draw", file=sys.stderr)
        return 1
    rows = rows_of(path)
    timed = [row for row in rows if "p50_ms" in row]
    if not timed:
        print(f"{path} has no row with a time: nothing to draw", file=sys.stderr)
        return 1
    for name, drawn in save_figures(rows, {name: str(timed[0][name]) for name in MACHINE}, args.folder).items():
        print(f"{name}: {drawn.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
