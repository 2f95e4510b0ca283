"""Time cross-attention with its head-averaged map, forward and with the map's gradient, at the shapes of SD and SDXL.

python benchmarks/maps.py --csv benchmarks/results/maps.csv
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator

import torch
from backward import with_gradients
from gpu_harness import Case, Results, arguments, run_all
from torch import Tensor

import entropy_attn as ea

BATCH = 2  # the two halves of classifier-free guidance
TEXT = 77
MAP_KEYS = (0, TEXT)
# (heads, image tokens, head dim): Stable Diffusion 1.5 at 512 and 1024 px, SDXL at 1024 px
SHAPES = [(8, 4096, 40), (8, 1024, 80), (8, 256, 160), (8, 16384, 40), (10, 4096, 64), (20, 1024, 64)]


def ours(q: Tensor, k: Tensor, v: Tensor, *, head_map: bool, impl: str = "triton") -> Results:
    result = ea.attention(q, k, v, map_keys=MAP_KEYS if head_map else None, impl=impl)
    return {"out": result.out} | ({"map": result.map} if head_map else {})


def materialised(q: Tensor, k: Tensor, v: Tensor, *, head_map: bool) -> Results:
    """What is done to see maps today: the whole softmax, kept."""
    s = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    p = s.softmax(dim=-1)
    return {"out": p.to(v.dtype) @ v} | ({"map": p[..., slice(*MAP_KEYS)].mean(dim=1)} if head_map else {})


def grads(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    out = torch.randn(case.batch, case.heads, case.seqlen, case.head_dim, dtype=case.dtype, device=device)
    return out, torch.randn(case.batch, case.seqlen, TEXT, device=device)


def cases(dtypes: list[str]) -> Iterator[Case]:
    for dtype in dtypes:
        for heads, n, head_dim in SHAPES:
            flops = 4 * BATCH * heads * n * TEXT * head_dim
            shape = (getattr(torch, dtype), BATCH, heads, n, TEXT, head_dim)
            plain = functools.partial(materialised, head_map=True)
            forward = {
                "triton": functools.partial(ours, head_map=False),
                "sdpa": functools.partial(ours, head_map=False, impl="sdpa"),
                "triton+map": functools.partial(ours, head_map=True),
                "materialised+map": plain,
            }
            yield Case(*shape, forward, plain, plain, flops, gate_heads=heads)
            plain = functools.partial(with_gradients, plain)
            both = {
                "triton+map, gradient": functools.partial(with_gradients, functools.partial(ours, head_map=True)),
                "materialised+map, gradient": plain,
            }
            yield Case(*shape, both, plain, plain, 3.5 * flops, gate_heads=heads, extra=grads)


def main() -> int:
    args = arguments(__doc__).parse_args()
    return run_all(cases(args.dtypes), args)


if __name__ == "__main__":
    sys.exit(main())
