"""On a CPU, what do attention output and entropy cost, compared with a softmax matrix in memory?

The matrix is that of all rows, of chunks of rows, or of code that torch.compile made, which needs a C++ compiler.

python -m benchmarks.cpu.entropy --threads 1 2 --csv benchmarks/results/cpu_entropy.csv
python -m benchmarks.cpu.entropy --threads 1 --dtypes float32 bfloat16 float16 --shapes 1024x40
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import entropy_attn as ea
from benchmarks.cpu.harness import COMPILED, Comparison, Shape, check_errors, compiled
from entropy_attn.bench.implementations.softmax import CHUNK_SCORES, chunks
from entropy_attn.ops.reference import attention_reference

ROWS_CHECKED = 64


def fused(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    result = ea.attention(q, k, v, return_entropy=True, impl="sdpa")
    return {"out": result.out, "entropy": result.entropy}


def materialized(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The fastest plain implementation: one log-softmax, no clamp."""
    log_p = ((q @ k.mT) * q.shape[-1] ** -0.5).log_softmax(dim=-1)
    p = log_p.exp()
    return {"out": p @ v, "entropy": -(p * log_p).sum(dim=-1)}


def chunked(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The same for a chunk of rows after the other."""
    parts = [materialized(q[:, :, rows], k, v) for rows in chunks(q, k, CHUNK_SCORES["cpu"])]
    return {name: torch.cat([part[name] for part in parts], dim=2) for name in parts[0]}


def make_inputs(args: argparse.Namespace, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(args.batch, args.heads, *shape, generator=g) for _ in range(3))
    return (2.0 * q).to(dtype), k.to(dtype), v.to(dtype)


def check(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Compare the first rows with float64."""
    q, k, v = inputs
    rows = slice(ROWS_CHECKED)
    out, _, entropy, _ = attention_reference(q[:, :, rows], k, v)
    ours = {name: t[:, :, rows] for name, t in fused(q, k, v).items()}
    check_errors({"out": out, "entropy": entropy}, ours, materialized(q[:, :, rows], k, v))


if __name__ == "__main__":
    with torch.no_grad():
        Comparison(
            title="out + entropy", doc=__doc__,
            ways={"sdpa": fused, "materialised": materialized, "chunked": chunked,
                  COMPILED: compiled(materialized)},
            make_inputs=make_inputs, check=check, shapes=[(1024, 40), (2048, 40), (4096, 40)],
        ).main()  # fmt: skip
