"""Check and measure on the GPU of this machine: the most important parts first, within a time budget.

    python -m benchmarks.gpu --out gpu-results                          # everything, in nine minutes
    python -m benchmarks.gpu --out gpu-results --resume                 # what is still missing
    python -m benchmarks.gpu --out gpu-results --only forward tests     # some parts
    python -m benchmarks.gpu --out sanitized --only sanitize            # calls under NVIDIA's compute-sanitizer

Results are written as soon as they are measured, to at most eight files: log.txt, checks.csv (calls, tests and the
outcome of each part), a CSV file for each table, and archive.zip (the bench with its figures, guidance). A kernel that
hangs, dies or loses the device becomes a row that says so. Ctrl-C and SIGTERM keep the results.

Exit codes: 0 everything is correct; 1 something is wrong or failed; 2 no GPU, or bad arguments; 3 nothing failed, but
the budget was too small for all parts; 128 + N if signal N stopped it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import add_commit, new_parser
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.run import Runner

DESCRIBE = ("{python}", "-m", "benchmarks.gpu.device", "--device", "{device}")
BUDGET = 540.0  # seconds


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, describe: Sequence[str] = DESCRIBE) -> int:
    names = [part.name for part in parts]
    listed = "\n".join(f"  {p.name:<16}{p.what}{'' if p.usual else ' (only with --only)'}" for p in parts)
    parser = new_parser(__doc__)
    parser.prog, parser.epilog = "python -m benchmarks.gpu", f"parts, in the order in which they run:\n{listed}"
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of results (default %(default)s)")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help="for all parts (default %(default)g)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="PART", help="run only these parts, in the usual order"
    )
    parser.add_argument("--resume", action="store_true", help="continue in a folder that has results; they are kept")
    add_commit(parser)
    parser.add_argument("--device", default="cuda", help="cuda, or emulated:sm_90 for small cases without a GPU")
    args = parser.parse_args(argv)
    if not args.budget > 0:
        parser.error(f"--budget: expected a number of seconds above 0, got {args.budget:g}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out: expected a folder, got the file {args.out}")
    if not args.resume and args.out.is_dir() and any(args.out.glob("*.csv")):
        parser.error(f"--out: expected a folder without results, or --resume to continue, got {args.out}")
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in parts if (part.name in args.only if args.only else part.usual)]
    return Runner(args.out.resolve(), args.budget, args.device, args.commit or "", args.resume).run(chosen, describe)


if __name__ == "__main__":
    sys.exit(main())
