"""Draw the figures of `entropy-attn bench` from the bench.csv of a folder.

python -m benchmarks.gpu.figures gpu-results/bench
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.common import new_parser, read_rows
from entropy_attn.bench.measure import MACHINE
from entropy_attn.plots.benchmark import save_figures

TEXT = {"model", "size", "kind", "task", "pass", "dtype", "implementation", "status", *MACHINE}


def rows_of(path: Path) -> list[dict[str, object]]:
    """The rows as they were measured: numbers as numbers, and no empty cells."""
    return [{name: _value(name, text) for name, text in row.items() if text or name in TEXT} for row in read_rows(path)]


def _value(name: str, text: str) -> object:
    if name in TEXT:
        return text
    return int(text) if text.lstrip("-").isdigit() else float(text)


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder that has bench.csv and gets the figures")
    args = parser.parse_args()
    path = args.folder / "bench.csv"
    if not path.exists():
        print(f"{path} does not exist: nothing to draw", file=sys.stderr)
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
