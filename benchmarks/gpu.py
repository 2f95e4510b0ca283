"""What `make gpu` does: the oracle tests compiled on the card, then the table against torch's attention.

Each part runs in a process of its own with a time limit, so that a kernel that hangs costs that part alone.

    python benchmarks/gpu.py --results benchmarks/results
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def run(name: str, command: list[str], limit: float) -> bool:
    """Run a part; False where it fails or outlasts ``limit`` seconds."""
    began = time.monotonic()
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=limit, check=False).returncode
        outcome = "ok" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        code, outcome = 124, f"stopped after its limit of {limit:.0f} s"
    print(f"== {name}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: no GPU is visible to torch; nothing was checked or measured", file=sys.stderr)
        return 2
    args.results.mkdir(parents=True, exist_ok=True)
    python, table = sys.executable, args.results.resolve() / "forward.csv"
    right = run("tests", [python, "-m", "pytest", "-q", "-x", "tests/gpu"], limit=240)
    timed = run("forward", [python, "benchmarks/forward.py", "--csv", str(table)], limit=240)
    return 0 if right and timed else 1


if __name__ == "__main__":
    sys.exit(main())
