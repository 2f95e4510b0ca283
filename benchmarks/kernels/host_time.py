"""How long is the host busy with one call, until its kernels are launched?

A diffusion step launches dozens of small attentions; if the host is slower than the GPU, it limits the speed. Bursts of
each call alternate with bursts of the same call on Triton's launch path, without plans (kernels/common/plans.py), and,
on a GPU, of torch's attention. Without a GPU, Triton's launcher runs on a driver that does nothing, and the time of the
thread is measured; it does not include the driver.

    python -m benchmarks.kernels.host_time --csv benchmarks/results/launch.csv
    python -m benchmarks.kernels.host_time --tokens 1024 --rounds 10
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import entropy_attn as ea
from benchmarks.common import add_commit, add_csv, add_json, new_parser, write_outputs
from benchmarks.kernels.stub_driver import by_triton, stub_driver
from entropy_attn.bench.machine import machine
from entropy_attn.kernels.backward.launch import attention_backward
from entropy_attn.kernels.common.call import AttentionCall

BURST = 50  # calls between two synchronizations: fewer than fit into the launch queue
FULL = (132, 8, 16)  # batch, heads, tokens: enough programs for all multiprocessors, so that maps need no second sum
Call = Callable[[], object]


def calls(tokens: int, device: torch.device, impl: str) -> dict[str, tuple[Call, Call | None]]:
    """{name: (our call, the same in torch or None)}."""

    def tensors(batch: int, heads: int, *lengths: int, dtype: torch.dtype = torch.float16) -> list[torch.Tensor]:
        return [torch.randn(batch, heads, n, 64, device=device, dtype=dtype) for n in lengths]

    def ours(inputs: list[torch.Tensor], **options: object) -> Call:
        return functools.partial(ea.attention, *inputs, **options, impl=impl)

    def plain(inputs: list[torch.Tensor]) -> Call:
        return functools.partial(F.scaled_dot_product_attention, *inputs)

    def gradients(**options: object) -> tuple[Call, None]:
        query, key, value, out = tensors(2, 8, *[tokens] * 4, dtype=torch.bfloat16)
        rows = torch.randn(2, 8, tokens, device=device)
        given = (AttentionCall(query, key, value), out, rows, rows.clone())
        return functools.partial(attention_backward, *given, grad_out=torch.randn_like(out), **options), None

    alike, text = tensors(2, 8, *[tokens] * 3), tensors(2, 8, tokens, 77, 77)
    mapped = tensors(*FULL, 77, 77)
    swept = tensors(*FULL, 300, 300)
    entropy = {"grad_entropy": torch.randn(2, 8, tokens, device=device)}
    return {
        f"self, {tokens} tokens": (ours(alike), plain(alike)),
        f"self, {tokens} tokens, scale": (ours(alike, scale=0.1), plain(alike)),
        f"self, {tokens} tokens, entropy": (ours(alike, return_entropy=True), plain(alike)),
        "cross, 77 keys": (ours(text), plain(text)),
        "cross, 77 keys, map": (ours(mapped, map_keys=(0, 77)), plain(mapped)),
        "300 keys, map of 77": (ours(swept, map_keys=(0, 77)), plain(swept)),
        f"self, {tokens} tokens, backward": gradients(),
        f"self, {tokens} tokens, backward of entropy too": gradients(**entropy),
    }


def microseconds(call: Call, wait: Callable[[], None], clock: Callable[[], float]) -> float:
    """The time of one call in a burst."""
    wait()
    began = clock()
    for _ in range(BURST):
        call()
    return (clock() - began) / BURST * 1e6


def measure(
    name: str, ours: Call, torchs: Call | None, rounds: int, wait: Callable[[], None], clock: Callable[[], float]
) -> dict[str, object]:
    """A row: our call, the same on Triton's launch path, and torch's, in alternating bursts."""

    def by_tritons_path() -> float:
        with by_triton():
            return microseconds(ours, wait, clock)

    turns = [functools.partial(microseconds, ours, wait, clock), by_tritons_path]
    turns += [] if torchs is None else [functools.partial(microseconds, torchs, wait, clock)]
    for turn in turns * 2:
        turn()  # compiles
    times = [[turn() for turn in turns] for _ in range(rounds)]

    def spread(name: str, values: Iterable[float]) -> dict[str, float]:
        found = statistics.quantiles(values, n=10)
        return dict(zip((f"p20_{name}", f"p50_{name}", f"p80_{name}"), (found[1], found[4], found[7]), strict=True))

    row: dict[str, object] = {"call": name, **spread("us", (t[0] for t in times))}
    row["triton_us"] = statistics.median(t[1] for t in times)
    row |= spread("of_triton", (t[0] / t[1] for t in times))
    if torchs is not None:
        row["torch_us"] = statistics.median(t[2] for t in times)
        row["ratio"] = statistics.median(t[0] / t[2] for t in times)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of self-attention (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="bursts of each call (default %(default)s)")
    add_commit(parser)
    add_csv(parser)
    add_json(parser)
    args = parser.parse_args()
    if args.tokens < 1 or args.rounds < 2:
        parser.error(f"--tokens, --rounds: expected at least 1 and 2, got {args.tokens} and {args.rounds}")

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    driver = nullcontext() if gpu else stub_driver()
    wait, clock = (torch.cuda.synchronize, time.perf_counter) if gpu else ((lambda: None), time.thread_time)
    with driver, torch.no_grad():
        rows = [
            # Without a GPU torch would compute on the CPU, and not launch anything
            measure(name, ours, torchs if gpu else None, args.rounds, wait, clock)
            for name, (ours, torchs) in calls(args.tokens, device, "triton").items()
        ]
    about = {"driver_part": "included" if gpu else "left out", **machine(device, args.commit)}
    rows = [{**row, **about} for row in rows]

    table = Table(title="host time of one call, microseconds" + ("" if gpu else " (without the driver)"))
    shown = [name for name in rows[0] if name not in about]
    for name in shown:
        table.add_column(name, justify="left" if name == "call" else "right", no_wrap=name == "call")
    for row in rows:
        table.add_row(*(str(row[name]) for name in shown))
    Console().print(table)
    write_outputs(args, rows)


if __name__ == "__main__":
    main()
