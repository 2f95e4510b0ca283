"""Check and measure on the GPU of this machine, most important first, within a budget of time.

    python -m benchmarks.gpu --out gpu-results                          # everything, in nine minutes
    python -m benchmarks.gpu --out gpu-results --resume                 # what is still missing
    python -m benchmarks.gpu --out gpu-results --only forward tests     # parts
    python -m benchmarks.gpu --out sanitized --only sanitize            # calls under NVIDIA's compute-sanitizer

What is measured is in the folder at once, in at most eight files: log.txt, checks.csv (calls, tests and how each part
went), a CSV file for each table, and archive.zip (the bench with its figures, guidance). A kernel that hangs, dies or
loses the device is a row that says so. Ctrl-C, or a signal to end, keeps what there is.

Exit code: 0 all right, 1 something is wrong or failed, 2 no GPU or bad arguments, 3 nothing failed but the budget was
not enough for all, 128 and the number of a signal that stopped it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.run import Runner

DESCRIBE = ("{python}", "-m", "benchmarks.gpu.device", "--device", "{device}")
BUDGET = 540.0  # seconds


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, describe: Sequence[str] = DESCRIBE) -> int:
    names = [part.name for part in parts]
    listed = "\n".join(f"  {p.name:<16}{p.what}{'' if p.usual else ' (only where it is named)'}" for p in parts)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, epilog=f"parts, in their order:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of results (default %(default)s)")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="for all (default %(default)g)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help="these parts, in their usual order")
    parser.add_argument("--resume", action="store_true", help="go on in a folder that has results: what is there stays")
    parser.add_argument("--commit", default="", help="the commit that the rows name, where this is no git checkout")
    parser.add_argument("--device", default="cuda", help="cuda, or emulated:sm_90 for small cases without a GPU")
    args = parser.parse_args(argv)
    if not args.budget > 0:
        parser.error(f"--budget {args.budget:g}: a number of seconds above 0 is needed")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: it is a file, and a folder is needed")
    if not args.resume and args.out.is_dir() and any(args.out.glob("*.csv")):
        parser.error(f"--out {args.out}: it has results; give --resume to go on with them, or another folder")
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in parts if (part.name in args.only if args.only else part.usual)]
    return Runner(args.out.resolve(), args.budget, args.device, args.commit, args.resume).run(chosen, describe)


if __name__ == "__main__":
    sys.exit(main())
