"""Time forward and backward together against torch's attention, with and without a gradient of the entropy.

python benchmarks/backward.py --csv benchmarks/results/backward.csv
python benchmarks/backward.py --head-dims 64 --lengths 1024 4096
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator

import torch
from gpu_harness import BACKENDS, Case, Results, arguments, forced, run_all
from torch import Tensor

import entropy_attn as ea

TOKENS = 16_384  # batch x length
HEADS = 8
FLEX_LENGTH = 4096  # FlexAttention compiles anew for each shape: one length is enough to compare with


def with_gradients(attend: Callable[..., Results], q: Tensor, k: Tensor, v: Tensor, *grads: Tensor) -> Results:
    """What ``attend`` gives, and the gradients of query, key and value; ``grads`` belong to its results in order."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    results = attend(*leaves)
    derived = torch.autograd.grad(list(results.values()), leaves, grads[: len(results)])
    return {name: t.detach() for name, t in results.items()} | dict(zip(("dq", "dk", "dv"), derived, strict=True))


def ours(q: Tensor, k: Tensor, v: Tensor, *, entropy: bool) -> Results:
    result = ea.attention(q, k, v, impl="triton", return_entropy=entropy)
    return {"out": result.out} | ({"entropy": result.entropy} if entropy else {})


def by_torch(backend, q: Tensor, k: Tensor, v: Tensor) -> Results:
    return {"out": forced(backend, q, k, v)}


@functools.cache
def _flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def by_flex(q: Tensor, k: Tensor, v: Tensor) -> Results:
    return {"out": _flex()(q, k, v)}


def materialised(q: Tensor, k: Tensor, v: Tensor, *, entropy: bool) -> Results:
    log_p = ((q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5).log_softmax(dim=-1)
    p = log_p.exp()
    return {"out": p.to(v.dtype) @ v} | ({"entropy": -(p * log_p).sum(dim=-1)} if entropy else {})


def grads(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Gradients of output and entropy of like size."""
    rows = (case.batch, case.heads, case.seqlen)
    return torch.randn(*rows, case.head_dim, dtype=case.dtype, device=device), torch.randn(rows, device=device)


def cases(dtypes: list[str], head_dims: list[int], lengths: list[int]) -> Iterator[Case]:
    for dtype in dtypes:
        for head_dim in head_dims:
            for n in lengths:
                for entropy in (False, True):
                    attend = {"triton+entropy" if entropy else "triton": functools.partial(ours, entropy=entropy)}
                    if not entropy:
                        attend |= {name: functools.partial(by_torch, backend) for name, backend in BACKENDS.items()}
                        if n == FLEX_LENGTH:
                            attend["flex"] = by_flex
                    plain = functools.partial(with_gradients, functools.partial(materialised, entropy=entropy))
                    runs = {name: functools.partial(with_gradients, function) for name, function in attend.items()}
                    if entropy:
                        runs["materialised+entropy"] = plain
                    batch = max(1, TOKENS // n)
                    flops = 3.5 * 4 * batch * HEADS * n**2 * head_dim
                    yield Case(
                        getattr(torch, dtype), batch, HEADS, n, n, head_dim, runs, plain, plain, flops, extra=grads
                    )


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[40, 64, 128, 160])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    args = parser.parse_args()
    return run_all(cases(args.dtypes, args.head_dims, args.lengths), args)


if __name__ == "__main__":
    sys.exit(main())
