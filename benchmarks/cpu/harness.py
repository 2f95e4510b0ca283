"""What the cpu_*.py benchmarks share: two ways to the same results, compared in time and in memory.

Times are medians of runs that take turns in one process, so that both see the same load. Peak memory is the growth of
the peak resident set over one call, in a fresh process per case. No figure is shown before the results were correct.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

Shape = tuple[int, int]  # tokens, head dim


@dataclass(frozen=True)
class Comparison:
    """A benchmark: `ways` holds ours first, then what it is measured against."""

    title: str
    doc: str
    ways: dict[str, Callable[..., Any]]
    make_inputs: Callable[[argparse.Namespace, Shape], tuple]
    check: Callable[[tuple], None]  # raises SystemExit for a wrong result
    shapes: list[Shape]

    def main(self) -> None:
        args = self._parse()
        torch.set_num_threads(args.threads)
        if args.worker:
            return self._worker(args)
        if not Path("/proc/self/clear_refs").exists():
            raise SystemExit("peak memory is read from /proc, which this system lacks: run it on Linux")
        shapes = track(args.shapes, "measuring", console=Console(stderr=True), transient=True)
        rows = [self._measure(args, shape) for shape in shapes]
        Console().print(self._table(rows))
        if args.csv:
            with args.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")

    def _parse(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        default = " ".join(f"{n}x{d}" for n, d in self.shapes)
        parser.add_argument("--shapes", type=_shape, nargs="+", default=self.shapes, metavar="TOKENSxDIM",
                            help=f"tokens and head dim of each case (default {default})")  # fmt: skip
        parser.add_argument("--batch", type=positive, default=1, help="default 1")
        parser.add_argument("--heads", type=positive, default=8, help="default 8")
        parser.add_argument("--repeats", type=positive, default=5, help="timed runs of each way (default 5)")
        parser.add_argument("--threads", type=positive, default=torch.get_num_threads(),
                            help="torch threads (default: torch's own choice)")  # fmt: skip
        parser.add_argument("--csv", type=Path, help="write the rows here")
        parser.add_argument("--json", type=Path, help="write the rows here")
        parser.add_argument("--worker", choices=list(self.ways), help=argparse.SUPPRESS)
        args = parser.parse_args()
        for path in (args.csv, args.json):
            if path is not None and not path.absolute().parent.is_dir():
                parser.error(f"{path}: no such folder: {path.absolute().parent}")
        return args

    def _measure(self, args: argparse.Namespace, shape: Shape) -> dict[str, float | int | str]:
        inputs = self.make_inputs(args, shape)
        self.check(inputs)
        times = self._times(inputs, args.repeats)
        ours, other = self.ways
        ratios = [slow / quick for slow, quick in zip(times[other], times[ours], strict=True)]
        row: dict[str, float | int | str] = {"batch": args.batch, "heads": args.heads}
        row |= {"tokens": shape[0], "head_dim": shape[1], "dtype": "float32", "repeats": args.repeats}
        row |= {f"{name}_ms": round(1e3 * statistics.median(times[name]), 2) for name in self.ways}
        row |= {"ratio": round(statistics.median(ratios), 2), "ratio_min": round(min(ratios), 2)}
        row["ratio_max"] = round(max(ratios), 2)
        row |= {f"{name}_extra_mib": round(self._memory(args, shape, name), 1) for name in self.ways}
        row |= {"threads": args.threads, "cpu": cpu_name(), "torch": torch.__version__}
        return row | {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}

    def _times(self, inputs: tuple, repeats: int) -> dict[str, list[float]]:
        """Seconds of each way, run after run, the ways taking turns."""
        times: dict[str, list[float]] = {name: [] for name in self.ways}
        for repeat in range(repeats + 1):
            for name, way in self.ways.items():
                start = time.perf_counter()
                way(*inputs)
                if repeat:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
        return times

    def _memory(self, args: argparse.Namespace, shape: Shape, name: str) -> float:
        """MiB that one call adds to the peak resident set, in a fresh process."""
        command = [sys.executable, sys.argv[0], "--worker", name, "--shapes", f"{shape[0]}x{shape[1]}"]
        command += ["--batch", str(args.batch), "--heads", str(args.heads), "--threads", str(args.threads)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def _worker(self, args: argparse.Namespace) -> None:
        """The fresh process: prints the MiB by which one call raises the peak resident set over what is resident."""
        way, (shape,) = self.ways[args.worker], args.shapes
        way(*self.make_inputs(args, (64, shape[1])))  # loads what the first call loads
        inputs = self.make_inputs(args, shape)
        Path("/proc/self/clear_refs").write_text("5")  # the peak restarts here (Linux); imports had one of their own
        before = resident_mib("VmRSS")
        way(*inputs)
        print(resident_mib("VmHWM") - before)

    def _table(self, rows: list[dict]) -> Table:
        first, (ours, other) = rows[0], self.ways
        title = f"{self.title}, B{first['batch']} H{first['heads']} float32, {first['threads']} thread(s)"
        result = Table(title=title, caption=f"{first['cpu']}, torch {first['torch']}; medians of {first['repeats']}")
        columns = ("tokens", "head dim", f"{ours} ms", f"{other} ms", "times faster (min-max)", f"{ours} +MiB",
                   f"{other} +MiB")  # fmt: skip
        for column in columns:
            result.add_column(column, justify="right")
        for r in rows:
            result.add_row(
                str(r["tokens"]), str(r["head_dim"]), f"{r[f'{ours}_ms']:.1f}", f"{r[f'{other}_ms']:.1f}",
                f"{r['ratio']:.2f} ({r['ratio_min']:.2f}-{r['ratio_max']:.2f})",
                f"{r[f'{ours}_extra_mib']:.1f}", f"{r[f'{other}_extra_mib']:.1f}",
            )  # fmt: skip
        return result


def check_errors(truth: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Time no wrong result: ours within twice the other's error.

    Raises:
        SystemExit: names what is off.
    """
    for what, exact in truth.items():
        error, allowed = ((t[what] - exact).abs().max().item() for t in (ours, other))
        rounding = 2 * torch.finfo(torch.float32).eps * max(1.0, exact.abs().max().item())
        if not error <= 2 * allowed + rounding:
            raise SystemExit(f"wrong result, nothing measured: {what} is off by {error:.3g}")


def resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _shape(text: str) -> Shape:
    tokens, _, head_dim = text.partition("x")
    try:
        return positive(tokens), positive(head_dim)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKENSxDIM, such as 4096x40") from None
