"""On a CPU, what do cross-attention, its map and the map's gradient cost, compared with a softmax matrix in memory?

The shapes are those of Stable Diffusion 1.5 at 512 x 512 px with 77 text tokens, one image. The matrix is that of all
rows, of chunks of rows that the backward pass computes again, or of code that torch.compile made, which needs a C++
compiler.

    python -m benchmarks.cpu.maps --threads 1 2 --repeats 31 --csv benchmarks/results/cpu_maps.csv
    python -m benchmarks.cpu.maps --threads 1 --dtypes bfloat16 float16 --shapes 4096x40 1024x80
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import entropy_attn as ea
from benchmarks.cpu.harness import COMPILED, Comparison, Shape, check_errors, compiled
from entropy_attn.bench.implementations.softmax import CHUNK_SCORES, chunks
from entropy_attn.ops.reference import attention_reference

TEXT = 77
MAP_KEYS = (1, 17)  # a prompt of 16 tokens, which guidance uses
Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def with_gradients(attend: Attention, q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Output, map, and the gradients of a loss of both, as in guidance of the latents."""
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    out, head_mean = attend(q, k, v)
    (out.mean() + (head_mean * weight).sum()).backward()
    return {"out": out.detach(), "map": head_mean.detach(), "dq": q.grad, "dk": k.grad, "dv": v.grad}


def fused(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> dict[str, Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        result = ea.attention(q, k, v, map_keys=MAP_KEYS, impl="sdpa")
        return result.out, result.map

    return with_gradients(attend, q, k, v, weight)


def matrix(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    p = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return p @ v, p[..., slice(*MAP_KEYS)].mean(dim=1)


compiled_matrix = compiled(matrix)


def materialized(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> dict[str, Tensor]:
    return with_gradients(matrix, q, k, v, weight)


def materialized_compiled(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> dict[str, Tensor]:
    return with_gradients(compiled_matrix, q, k, v, weight)


def chunked(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> dict[str, Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rows = chunks(q, k, CHUNK_SCORES["cpu"])
        parts = [checkpoint(matrix, q[:, :, chunk], k, v, use_reentrant=False) for chunk in rows]
        outs, maps = zip(*parts, strict=True)
        return torch.cat(outs, dim=2), torch.cat(maps, dim=1)

    return with_gradients(attend, q, k, v, weight)


def exact(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> dict[str, Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, _, _, head_mean = attention_reference(q, k, v, map_keys=MAP_KEYS)
        return out, head_mean

    return with_gradients(attend, q.double(), k.double(), v.double(), weight.double())


def make_inputs(args: argparse.Namespace, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, head_dim = shape
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(args.batch, args.heads, n, head_dim, generator=g) for n in (tokens, TEXT, TEXT))
    weight = torch.randn(args.batch, tokens, MAP_KEYS[1] - MAP_KEYS[0], generator=g)
    return (2.0 * q).to(dtype), k.to(dtype), v.to(dtype), weight


def check(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    check_errors(exact(*inputs), fused(*inputs), materialized(*inputs))


if __name__ == "__main__":
    Comparison(
        title="out + map and gradients", doc=__doc__,
        ways={"sdpa": fused, "materialised": materialized, "chunked": chunked, COMPILED: materialized_compiled},
        make_inputs=make_inputs, check=check, shapes=[(4096, 40), (1024, 80), (256, 160), (64, 160)],
    ).main()  # fmt: skip
