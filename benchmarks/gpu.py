"""What `make gpu` does: the oracle tests compiled on the card, then the tables against torch's.

Each part runs in a process of its own with a time limit, so that a kernel that hangs costs that part alone. The tests,
which wait for the compiler most of the time, run side by side; the timing has the card to itself.

    python benchmarks/gpu.py --results benchmarks/results
    python benchmarks/gpu.py --only tests forward
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


TESTS = {
    "tests on the card": "tests/gpu",
    "oracle tests": "tests/kernels/test_oracle.py",
    "property tests": "tests/kernels/test_properties.py",
    "gradient tests": "tests/kernels/test_backward.py",
    "map tests": "tests/kernels/test_maps.py",
    "other kernel tests": "tests/kernels --ignore=tests/kernels/test_oracle.py "
    "--ignore=tests/kernels/test_properties.py --ignore=tests/kernels/test_backward.py "
    "--ignore=tests/kernels/test_maps.py",
}
TEST_SECONDS = 300
TABLES = {
    "launch": 60,
    "tuning": 300,
    "forward": 240,
    "backward": 240,
    "maps": 120,
    "tsam_cost": 240,
}  # scripts beside this one, with their limits in seconds
SCRIPTS = {"tuning": "tune.py", "tsam_cost": "tsam/cost.py"}  # where that is not the script's name as well
BENCH_SECONDS = 300


def run(commands: dict[str, list[str]], limit: float) -> bool:
    """Run parts side by side; False where one fails or outlasts ``limit`` seconds."""
    began, right = time.monotonic(), True
    with tempfile.TemporaryDirectory() as folder:
        logs = {name: Path(folder, f"{i}.log") for i, name in enumerate(commands)}
        parts = {}
        for name, command in commands.items():
            with logs[name].open("w") as log:
                parts[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        for name, part in parts.items():
            try:
                code = part.wait(max(1.0, began + limit - time.monotonic()))
                outcome = "ok" if code == 0 else f"failed with exit code {code}"
            except subprocess.TimeoutExpired:
                part.kill()
                code, outcome = 124, f"stopped after its limit of {limit:.0f} s"
            right &= code == 0
            print(logs[name].read_text()[-6000:])
            print(f"== {name}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
    parser.add_argument("--only", nargs="+", choices=["tests", *TABLES, "bench"], help="these parts; by default all")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: no GPU is visible to torch; nothing was checked or measured", file=sys.stderr)
        return 2
    args.results.mkdir(parents=True, exist_ok=True)
    chosen = args.only or ["tests", *TABLES, "bench"]
    right = True
    if "tests" in chosen:
        command = [sys.executable, "-m", "pytest", "-q"]
        right &= run({name: [*command, *paths.split()] for name, paths in TESTS.items()}, limit=TEST_SECONDS)
    for name, limit in TABLES.items():
        if name in chosen:
            script, out = SCRIPTS.get(name, f"{name}.py"), args.results.resolve() / f"{name}.csv"
            command = [sys.executable, f"benchmarks/{script}", "--csv", str(out)]
            right &= run({name: command + (["--commit", args.commit] if args.commit else [])}, limit)
    if "bench" in chosen:  # its rows and figures
        command = [sys.executable, "-m", "entropy_attn", "bench", "--out", str(args.results.resolve() / "bench")]
        right &= run({"bench": command + (["--commit", args.commit] if args.commit else [])}, BENCH_SECONDS)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
