"""What a call costs the host: how long Python is busy until the kernel is launched.

A diffusion step launches dozens of small attentions; where the host is slower than the GPU, it sets the speed. On a
GPU the calls are queued in bursts, with torch's attention taking turns. Without one the time is that of everything
before the driver, with Triton's compiler and driver stood in for, which compares versions of this package and no more.

    PYTHONPATH=. python benchmarks/launch.py --csv benchmarks/results/launch.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import entropy_attn as ea
from entropy_attn.bench.machine import machine

BURST = 50  # calls between two waits for the GPU: fewer than fit into its queue
Call = Callable[[], object]


def calls(tokens: int, device: torch.device, impl: str) -> dict[str, tuple[Call, Call | None]]:
    """Ours, and what torch has for it."""
    self_attention = [torch.randn(2, 8, tokens, 64, device=device, dtype=torch.float16) for _ in range(3)]
    text = [torch.randn(2, 8, 77, 64, device=device, dtype=torch.float16) for _ in range(2)]
    query, key, value = self_attention

    def ours(*inputs: torch.Tensor, **options: object) -> Call:
        return lambda: ea.attention(*inputs, **options, impl=impl)

    def plain(*inputs: torch.Tensor) -> Call:
        return lambda: F.scaled_dot_product_attention(*inputs)

    return {
        f"self, {tokens} tokens": (ours(query, key, value), plain(query, key, value)),
        f"self, {tokens} tokens, scale": (ours(query, key, value, scale=0.1), plain(query, key, value)),
        f"self, {tokens} tokens, entropy": (ours(query, key, value, return_entropy=True), plain(query, key, value)),
        "cross, 77 keys": (ours(query, *text), plain(query, *text)),
        "cross, 77 keys, map": (ours(query, *text, map_keys=(0, 77)), plain(query, *text)),
    }


def microseconds(call: Call, wait: Callable[[], None]) -> float:
    """Of one call in a burst."""
    wait()
    begun = time.perf_counter()
    for _ in range(BURST):
        call()
    return (time.perf_counter() - begun) / BURST * 1e6


def measure(name: str, ours: Call, torchs: Call | None, rounds: int, wait: Callable[[], None]) -> dict[str, object]:
    both = [ours] if torchs is None else [ours, torchs]
    for call in both:
        microseconds(call, wait)  # compiles
    times = [[microseconds(call, wait) for call in both] for _ in range(rounds)]
    low, middle, high = (quantiles := statistics.quantiles([t[0] for t in times], n=10))[1], quantiles[4], quantiles[7]
    row: dict[str, object] = {"call": name, "p20_us": low, "p50_us": middle, "p80_us": high}
    if torchs is not None:
        row["torch_us"] = statistics.median(t[1] for t in times)
        row["ratio"] = statistics.median(t[0] / t[1] for t in times)
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="of self-attention (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="bursts of each call (default %(default)s)")
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
    parser.add_argument("--csv", type=Path, help="write the rows here")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    if args.tokens < 1 or args.rounds < 2:
        parser.error(f"--tokens {args.tokens} --rounds {args.rounds}: at least 1 and 2 are needed")

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if gpu:
        driver = nullcontext()
    else:
        from tests.codegen.host import recorded

        driver = recorded(keep=False)
    with driver, torch.no_grad():
        rows = [
            # torch would compute on the CPU, which is no measure of a launch
            measure(name, ours, torchs if gpu else None, args.rounds, torch.cuda.synchronize if gpu else lambda: None)
            for name, (ours, torchs) in calls(args.tokens, device, "triton").items()
            if gpu or "map" not in name  # whose parts torch adds: on the CPU that is work, not a launch
        ]
    about = {"driver_part": "included" if gpu else "stood in for", **machine(device, args.commit)}
    rows = [{**row, **about} for row in rows]

    table = Table(title="host time of one call, microseconds" + ("" if gpu else " (without the driver's part)"))
    shown = [name for name in rows[0] if name not in about]
    for name in shown:
        table.add_column(name, justify="left" if name == "call" else "right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in shown))
    Console().print(table)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
