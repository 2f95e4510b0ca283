"""Attention output and entropy on the CPU: impl="sdpa" against the softmax matrix held in memory.

Times are medians of interleaved runs in one process, so that both see the same load. Peak memory is the growth of the
peak resident set over one call, in a fresh process per case. No figure is shown before the results were found correct.
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
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import entropy_attn as ea
from entropy_attn.reference import attention_reference

EXAMPLE = """example:
  python benchmarks/cpu_entropy.py --tokens 1024 2048 4096 --heads 8 --head-dim 40 --csv cpu_entropy.csv
"""
ROWS_CHECKED = 64
WARM_UP_TOKENS = 64

Inputs = tuple[Tensor, Tensor, Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    result = ea.attention(q, k, v, return_entropy=True, impl="sdpa")
    return result.out, result.entropy


def materialised(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The quickest of the plain ways: log-softmax once, and no clamp."""
    log_p = ((q @ k.mT) * q.shape[-1] ** -0.5).log_softmax(dim=-1)
    p = log_p.exp()
    return p @ v, -(p * log_p).sum(dim=-1)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "sdpa": fused,
    "materialised": materialised,
}


def make_inputs(args: argparse.Namespace, tokens: int) -> Inputs:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(args.batch, args.heads, tokens, args.head_dim, generator=g) for _ in range(3))
    return 2.0 * q, k, v


def check(inputs: Inputs) -> None:
    """Time no wrong result: the first rows against float64, within twice the plain way's error."""
    q, k, v = inputs
    rows = slice(ROWS_CHECKED)
    truth_out, _, truth_entropy, _ = attention_reference(q[:, :, rows], k, v)
    results = {name: way(q[:, :, rows], k, v) for name, way in WAYS.items()}
    results["sdpa, whole"] = tuple(t[:, :, rows] for t in fused(q, k, v))
    for index, (what, truth) in enumerate((("out", truth_out), ("entropy", truth_entropy))):
        error = {name: (result[index] - truth).abs().max().item() for name, result in results.items()}
        rounding = 2 * torch.finfo(torch.float32).eps * max(1.0, truth.abs().max().item())
        for name in ("sdpa", "sdpa, whole"):
            if not error[name] <= 2 * error["materialised"] + rounding:
                raise SystemExit(f"wrong result, nothing measured: {what} of {name} is off by {error[name]:.3g}")


def measure_times(inputs: Inputs, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, run after run, the ways taking turns."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(repeats + 1):
        for name, way in WAYS.items():
            start = time.perf_counter()
            way(*inputs)
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def measure_memory(args: argparse.Namespace, tokens: int, name: str) -> float:
    """MiB that one call adds to the peak resident set, in a fresh process."""
    command = [sys.executable, __file__, "--worker", name, "--tokens", str(tokens), "--batch", str(args.batch)]
    command += ["--heads", str(args.heads), "--head-dim", str(args.head_dim), "--threads", str(args.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def worker(args: argparse.Namespace) -> None:
    """The fresh process: prints the MiB by which one call raises the peak resident set over what is resident."""
    way = WAYS[args.worker]
    way(*make_inputs(args, WARM_UP_TOKENS))  # loads what the first call loads
    inputs = make_inputs(args, args.tokens[0])
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts here (Linux); imports had one of their own
    before = resident_mib("VmRSS")
    way(*inputs)
    print(resident_mib("VmHWM") - before)


def resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def measure(args: argparse.Namespace, tokens: int) -> dict[str, float | int | str]:
    inputs = make_inputs(args, tokens)
    check(inputs)
    times = measure_times(inputs, args.repeats)
    ratios = [slow / quick for slow, quick in zip(times["materialised"], times["sdpa"], strict=True)]
    row: dict[str, float | int | str] = {"batch": args.batch, "heads": args.heads, "tokens": tokens}
    row |= {"head_dim": args.head_dim, "dtype": "float32", "repeats": args.repeats}
    for name in WAYS:
        row[f"{name}_ms"] = round(1e3 * statistics.median(times[name]), 2)
    row |= {"ratio": round(statistics.median(ratios), 2), "ratio_min": round(min(ratios), 2)}
    row["ratio_max"] = round(max(ratios), 2)
    for name in WAYS:
        row[f"{name}_extra_mib"] = round(measure_memory(args, tokens, name), 1)
    row |= {"threads": args.threads, "cpu": cpu_name(), "torch": torch.__version__}
    return row | {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(rows: list[dict]) -> Table:
    first = rows[0]
    title = (
        f"out + entropy, B{first['batch']} H{first['heads']} D{first['head_dim']} float32, {first['threads']} thread(s)"
    )
    result = Table(title=title, caption=f"{first['cpu']}, torch {first['torch']}; medians of {first['repeats']}")
    columns = ("tokens", "sdpa ms", "materialised ms", "times faster (min-max)", "sdpa +MiB", "materialised +MiB")
    for column in columns:
        result.add_column(column, justify="right")
    for r in rows:
        result.add_row(
            str(r["tokens"]),
            f"{r['sdpa_ms']:.1f}",
            f"{r['materialised_ms']:.1f}",
            f"{r['ratio']:.2f} ({r['ratio_min']:.2f}-{r['ratio_max']:.2f})",
            f"{r['sdpa_extra_mib']:.1f}",
            f"{r['materialised_extra_mib']:.1f}",
        )
    return result


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        nargs="+",
        default=[1024, 2048, 4096],
        help="sequence lengths (default 1024 2048 4096)",
    )
    parser.add_argument("--batch", type=positive, default=1, help="default 1")
    parser.add_argument("--heads", type=positive, default=8, help="default 8")
    parser.add_argument("--head-dim", type=positive, default=40, help="default 40")
    parser.add_argument("--repeats", type=positive, default=5, help="timed runs of each way (default 5)")
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="torch threads (default: torch's own choice)"
    )
    parser.add_argument("--csv", type=Path, help="write the rows here")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--worker", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for path in (args.csv, args.json):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: no such folder: {path.absolute().parent}")
    return args


@torch.no_grad()
def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.worker:
        return worker(args)
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("peak memory is read from /proc, which this system lacks: run it on Linux")
    console = Console()
    rows = [measure(args, n) for n in track(args.tokens, "measuring", console=Console(stderr=True), transient=True)]
    console.print(table(rows))
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
