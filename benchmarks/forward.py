"""Time the forward pass against torch's attention, on the card that is here.

python benchmarks/forward.py --csv benchmarks/results/forward.csv
python benchmarks/forward.py --head-dims 64 --lengths 1024 4096
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator

import torch
from gpu_harness import BACKENDS, Case, Results, arguments, forced, run_all
from torch import Tensor

import entropy_attn as ea

TOKENS = 32_768  # batch x length; the batch shrinks as the length grows, so that every case fills the card
HEADS = 8


def ours(q: Tensor, k: Tensor, v: Tensor, *, entropy: bool) -> Results:
    result = ea.attention(q, k, v, impl="triton", return_entropy=entropy)
    return {"out": result.out} | ({"entropy": result.entropy} if entropy else {})


def materialised(q: Tensor, k: Tensor, v: Tensor) -> Results:
    log_p = ((q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5).log_softmax(dim=-1)
    p = log_p.exp()
    return {"out": p.to(v.dtype) @ v, "entropy": -(p * log_p).sum(dim=-1)}


def by_torch(backend, q: Tensor, k: Tensor, v: Tensor) -> Results:
    return {"out": forced(backend, q, k, v)}


RUNS = {
    "triton": functools.partial(ours, entropy=False),
    "triton+entropy": functools.partial(ours, entropy=True),
    **{name: functools.partial(by_torch, backend) for name, backend in BACKENDS.items()},
    "materialised+entropy": materialised,
}


def cases(dtypes: list[str], head_dims: list[int], lengths: list[int]) -> Iterator[Case]:
    for dtype in dtypes:
        for head_dim in head_dims:
            for n in lengths:
                batch = max(1, TOKENS // n)
                flops = 4 * batch * HEADS * n**2 * head_dim
                yield Case(getattr(torch, dtype), batch, HEADS, n, n, head_dim, RUNS, materialised, materialised, flops)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[40, 64, 80, 128, 160])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    args = parser.parse_args()
    return run_all(cases(args.dtypes, args.head_dims, args.lengths), args)


if __name__ == "__main__":
    sys.exit(main())
