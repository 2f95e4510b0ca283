"""A table of docs/performance.md: the machine code of kernels for Hopper, beside the speeds that others published."""

from __future__ import annotations

import re
from typing import NamedTuple

Rows = list[dict[str, str]]


class Published(NamedTuple):
    """Speeds without a mask, from the shortest to the longest sequence that the source lists."""

    kernel: str
    head_dims: tuple[int, ...]
    tflops: str
    by: str  # who measured
    where: str  # card, dtype, tokens
    source: str


PAPER = "https://arxiv.org/abs/2407.08608"
TUNING = "https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/cute/interface.py"
FBTRITON = "https://github.com/facebookexperimental/triton/pull/205"
TRITONBENCH = "https://github.com/meta-pytorch/tritonbench/pull/1254"
CUDNN = (
    "https://github.com/NVIDIA/cudnn-frontend/tree/main/benchmark/sdpa_benchmark_training/results/h200_919_only_cudnn"
)
IN_PAPER = "the paper of FlashAttention-3"
H100_PAPER = "H100 SXM5, fp16, 512 to 16k"
PUBLISHED = (
    Published("Triton's tutorial", (64,), "340-403", IN_PAPER, f"{H100_PAPER}, Triton of 2024", PAPER),
    Published("Triton's tutorial", (128,), "323-395", IN_PAPER, f"{H100_PAPER}, Triton of 2024", PAPER),
    Published("Triton's tutorial", (128,), "407-487", "Meta", "H100, fp16, 1k to 16k, Triton of 2025", FBTRITON),
    Published("FlashAttention-4", (80, 96), "about 600", "its authors", "H100 SXM, in a comment of the source", TUNING),
    Published("FlashAttention-3", (64,), "333-497", IN_PAPER, H100_PAPER, PAPER),
    Published("FlashAttention-3", (128,), "467-648", IN_PAPER, H100_PAPER, PAPER),
    Published("FlashAttention-3", (128,), "541-639", "Meta", "H100, 1k to 8k", TRITONBENCH),
    Published("cuDNN", (64,), "335-413", IN_PAPER, H100_PAPER, PAPER),
    Published("cuDNN", (128,), "497-595", IN_PAPER, H100_PAPER, PAPER),
    Published("cuDNN", (128,), "633-693", "NVIDIA", "H200, bf16, 2k to 32k (702 at 16k), cuDNN 9.19", CUDNN),
)
WITHOUT_CODE = ("FlashAttention-3", "cuDNN")  # not compiled here

HEADER = [
    *("d", "kernel", "tile", "warps", "registers", "shared KiB", "spills", "products", "exp in flight, %"),
    *("instructions", "FMA", "memory", "other", "tensor clk", "issue clk", "published TFLOP/s"),
]

REPLAY_HEADER = ["d", "kernel", "cycles", "tensor cores busy", "predicted TFLOP/s", "published", "error"]


def _both(off: dict[str, str], on: dict[str, str] | None, name: str) -> str:
    return off[name] if on is None else f"{off[name]} / {on[name]}"


def _published(kernel: str, head_dim: int) -> str:
    found = [f"{p.tflops} by {p.by}" for p in PUBLISHED if p.kernel == kernel and head_dim in p.head_dims]
    return "; ".join(found) or "-"


def _line(off: dict[str, str], on: dict[str, str] | None) -> list[str]:
    share = [f"{100 * float(row['exp_in_flight']):.0f}" for row in (off, on) if row]
    return [
        off["head_dim"], f"{off['kernel']}, {off['schedule']}", f"{off['block_m']} x {off['block_n']}", off["warps"],
        _both(off, on, "loop_registers"), f"{int(off['shared_bytes']) / 1024:.0f}", _both(off, on, "spills"),
        off["products"], " / ".join(share), *(_both(off, on, name) for name in ("instructions", "fma")),
        off["memory"], off["other"], off["tensor_clk"], _both(off, on, "issue_clk"),
        _published(off["kernel"], int(off["head_dim"])),
    ]  # fmt: skip


def table(rows: Rows) -> list[list[str]]:
    """A line for each head dim, kernel, schedule and tile, without and with entropy; after them, kernels without code.

    Raises:
        ValueError: two rows are of the same configuration, or one with entropy has none without.
    """
    pairs: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("head_dim", "kernel", "schedule", "block_m", "block_n"))
        pair = pairs.setdefault(key, {})
        if row["entropy"] in pair:
            raise ValueError(f"rows: expected one with {', '.join(key)}, entropy {row['entropy']}, got two")
        pair[row["entropy"]] = row
    lines: list[list[str]] = []
    for head_dim in dict.fromkeys(key[0] for key in pairs):
        for key, pair in pairs.items():
            if key[0] == head_dim and "off" not in pair:
                raise ValueError(f"rows: expected one with {', '.join(key)}, entropy off, got none")
            lines += [_line(pair["off"], pair.get("on"))] if key[0] == head_dim else []
        for kernel in WITHOUT_CODE:
            found = _published(kernel, int(head_dim))
            lines += [[head_dim, kernel, *["-"] * (len(HEADER) - 3), found]] if found != "-" else []
    return lines


def replay(rows: Rows) -> list[list[str]]:
    """What the model of time predicts, and its error against each published speed of the kernel (longest sequence)."""
    lines = []
    for row in rows:
        known = [p for p in PUBLISHED if p.kernel == row["kernel"] and int(row["head_dim"]) in p.head_dims]
        plain = row["entropy"] == "off"
        longest = [re.findall(r"\d+", p.tflops)[-1] for p in known] if plain else []
        errors = [f"{100 * (float(row['tflops']) / float(speed) - 1):+.0f} %" for speed in longest]
        lines.append([
            row["head_dim"], f"{row['kernel']}, {row['schedule']}{'' if plain else ', with entropy'}", row["cycles"],
            f"{100 * float(row['tensor_busy']):.0f} %", row["tflops"], ", ".join(longest) or "-",
            ", ".join(errors) or "-",
        ])  # fmt: skip
    return lines


def sources() -> str:
    """Under which conditions the published speeds were measured."""
    lines = [
        f"- {p.kernel}, d {' and '.join(map(str, p.head_dims))}, {p.tflops} by {p.by}: {p.where} ([source]({p.source}))"
        for p in PUBLISHED
    ]
    return "\n".join(lines)
