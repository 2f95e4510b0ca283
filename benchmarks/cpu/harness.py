"""Shared by the CPU benchmarks: implementations with the same results, compared in time and memory.

Times are medians of runs that alternate in one process, so that all see the same load; a ratio is that of the runs of
one round. Peak memory is the growth of the peak resident set during one call, in a new process for each case. Results
are checked before anything is measured.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.common import ROOT, add_csv, add_json, module_command, new_parser, positive, write_outputs
from entropy_attn.bench.machine import cpu_name
from entropy_attn.bench.timing import resident_peak

Shape = tuple[int, int]  # tokens, head dim
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
NO_PEAK = "this benchmark reads peak memory from /proc, which this system does not have: use Linux"
COMPILED = "compiled"  # its memory is that of the compiler


@dataclass(frozen=True)
class Comparison:
    """A benchmark of several implementations: `ways` has ours first, then those it is compared with."""

    title: str
    doc: str
    ways: dict[str, Callable[..., Any]]
    make_inputs: Callable[[argparse.Namespace, Shape, torch.dtype], tuple]
    check: Callable[[tuple], None]  # raises SystemExit for a wrong result
    shapes: list[Shape]

    @property
    def others(self) -> list[str]:
        return list(self.ways)[1:]

    def _ratio(self, name: str) -> str:
        """The column of the ratio to an implementation: `ratio` for the first."""
        return "ratio" if name == self.others[0] else f"{name}_ratio"

    def main(self) -> None:
        args = self._parse()
        if args.worker:
            return self._worker(args)
        if resident_peak(lambda: None) is None:
            raise SystemExit(NO_PEAK)
        cases = [(n, dtype, shape) for n in args.threads for dtype in args.dtypes for shape in args.shapes]
        steps = track(cases, "measuring", console=Console(stderr=True), transient=True)
        rows = [self._measure(args, *case) for case in steps]
        Console().print(self._table(rows))
        write_outputs(args, rows)

    def _parse(self) -> argparse.Namespace:
        parser = new_parser(self.doc)
        default = " ".join(f"{n}x{d}" for n, d in self.shapes)
        parser.add_argument("--shapes", type=_shape, nargs="+", default=self.shapes, metavar="TOKENSxDIM",
                            help=f"tokens and head dim of each case (default {default})")  # fmt: skip
        parser.add_argument("--batch", type=positive, default=1, help="default 1")
        parser.add_argument("--heads", type=positive, default=8, help="default 8")
        parser.add_argument("--repeats", type=positive, default=5, help="timed runs of each implementation (default 5)")
        parser.add_argument("--threads", type=positive, nargs="+", default=[torch.get_num_threads()],
                            help="torch threads, one or several numbers (default: torch's choice)")  # fmt: skip
        parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+", default=["float32"], help="default float32")
        add_csv(parser)
        add_json(parser)
        parser.add_argument("--worker", choices=list(self.ways), help=argparse.SUPPRESS)
        return parser.parse_args()

    def _measure(self, args: argparse.Namespace, threads: int, dtype: str, shape: Shape) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.compiler.reset()  # compiled code is of one shape
        inputs = self.make_inputs(args, shape, DTYPES[dtype])
        self.check(inputs)
        times = self._times(inputs, args.repeats)
        ours = times[next(iter(self.ways))]
        row: dict[str, Any] = {"batch": args.batch, "heads": args.heads}
        row |= {"tokens": shape[0], "head_dim": shape[1], "dtype": dtype, "repeats": args.repeats}
        row |= {f"{name}_ms": round(1e3 * statistics.median(times[name]), 2) for name in self.ways}
        for name in self.others:
            ratios = [slow / quick for slow, quick in zip(times[name], ours, strict=True)]
            found = {"": statistics.median(ratios), "_min": min(ratios), "_max": max(ratios)}
            row |= {f"{self._ratio(name)}{end}": round(value, 2) for end, value in found.items()}
        for name in self.ways:
            if name != COMPILED:
                row[f"{name}_extra_mib"] = round(self._memory(args, threads, dtype, shape, name), 1)
        row |= {"threads": threads, "cpu": cpu_name(), "torch": torch.__version__}
        return row | {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}

    def _times(self, inputs: tuple, repeats: int) -> dict[str, list[float]]:
        """Seconds of each run of each implementation; the implementations alternate."""
        times: dict[str, list[float]] = {name: [] for name in self.ways}
        for repeat in range(repeats + 1):
            for name, way in self.ways.items():
                start = time.perf_counter()
                way(*inputs)
                if repeat:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
        return times

    def _memory(self, args: argparse.Namespace, threads: int, dtype: str, shape: Shape, name: str) -> float:
        """MiB that one call adds to the peak resident set, in a new process."""
        command = module_command(
            sys.modules["__main__"].__spec__.name, "--worker", name, "--shapes", f"{shape[0]}x{shape[1]}",
            "--batch", args.batch, "--heads", args.heads, "--threads", threads, "--dtypes", dtype,
        )  # fmt: skip
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)

    def _worker(self, args: argparse.Namespace) -> None:
        """In the new process: print the MiB by which the peak resident set of one call exceeds what is resident."""
        way, (shape,), (dtype,) = self.ways[args.worker], args.shapes, (DTYPES[name] for name in args.dtypes)
        torch.set_num_threads(*args.threads)
        way(*self.make_inputs(args, (64, shape[1]), dtype))  # loads libraries before the measurement
        inputs = self.make_inputs(args, shape, dtype)
        measured = resident_peak(lambda: way(*inputs))
        if measured is None:
            raise SystemExit(NO_PEAK)
        print(measured[1])

    def _table(self, rows: list[dict]) -> Table:
        first, ours = rows[0], next(iter(self.ways))
        title = f"{self.title}, B{first['batch']} H{first['heads']}: times as fast (min-max)"
        result = Table(title=title, caption=f"{first['cpu']}, torch {first['torch']}; medians of {first['repeats']}")
        kept = [name for name in self.ways if name != COMPILED]
        columns = ("tokens", "head dim", "dtype", "threads", f"{ours} ms", *(f"of {name}" for name in self.others),
                   *(f"{name} +MiB" for name in kept))  # fmt: skip
        for column in columns:
            result.add_column(column, justify="right")
        for r in rows:
            columns = [[r[f"{self._ratio(name)}{end}"] for end in ("", "_min", "_max")] for name in self.others]
            ratios = [f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in columns]
            case = [str(r[name]) for name in ("tokens", "head_dim", "dtype", "threads")]
            result.add_row(
                *case, f"{r[f'{ours}_ms']:.1f}", *ratios, *(f"{r[f'{name}_extra_mib']:.1f}" for name in kept)
            )
        return result


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile makes of it, at the first call: asking for help needs no compiler."""
    made: list[Callable[..., Any]] = []

    def run(*args: Any) -> Any:
        if not made:
            made.append(torch.compile(function, dynamic=False))
        return made[0](*args)

    return run


def check_errors(truth: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Check that our errors are at most twice those of the other implementation.

    Raises:
        SystemExit: a result is wrong.
    """
    for what, exact in truth.items():
        error, allowed = ((t[what] - exact).abs().max().item() for t in (ours, other))
        # of the inputs' dtype: each value is rounded to it
        rounding = 2 * torch.finfo(ours[what].dtype).eps * max(1.0, exact.abs().max().item())
        if not error <= 2 * allowed + rounding:
            raise SystemExit(f"wrong result, nothing is measured: {what} has an error of {error:.3g}")


def _shape(text: str) -> Shape:
    tokens, _, head_dim = text.partition("x")
    try:
        return positive(tokens), positive(head_dim)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected TOKENSxDIM, such as 4096x40, got {text!r}") from None
