"""Are the kernels correct on this GPU? Twenty calls, one for each kind of call, are compared with float64.

python -m benchmarks.gpu.calls                           # all of them
python -m benchmarks.gpu.calls forward-bfloat16 map      # two of them
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import entropy_attn as ea
from benchmarks.common import new_parser
from benchmarks.gpu.device import Device, opened
from entropy_attn.bench.gate import WrongResult

# The largest allowed error relative to the norm of the exact result: a few roundings of the dtype.
ALLOWED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Call:
    """Shapes, dtype and options of a call of `entropy_attn.attention`; masks and tensor scales are made for it."""

    head_dim: int
    seqlen_q: int
    seqlen_k: int
    dtype: torch.dtype = torch.bfloat16
    heads: int = 4
    heads_kv: int = 4
    gradient: bool = False
    mask: str = ""
    scale: Callable[[torch.device], Any] = lambda device: None
    options: dict[str, Any] = field(default_factory=dict)
    strided: bool = False


ENTROPY = {"return_lse": True, "return_entropy": True}
CALLS = {
    "forward-float16": Call(64, 200, 333, torch.float16),
    "forward-bfloat16": Call(64, 200, 333),
    "forward-float32": Call(64, 70, 133, torch.float32, options=ENTROPY),
    "whole-blocks": Call(128, 256, 512, options=ENTROPY),
    "entropy": Call(64, 200, 333, torch.float16, options=ENTROPY),
    "head-dim-40": Call(40, 130, 200, options=ENTROPY),
    "head-dim-72": Call(72, 130, 200, options=ENTROPY),
    "head-dim-160": Call(160, 130, 200, options=ENTROPY),
    "head-dim-256": Call(256, 130, 200, options=ENTROPY),
    "causal": Call(64, 200, 200, options={"is_causal": True, **ENTROPY}),
    "mask": Call(64, 130, 200, mask="bool", options=ENTROPY),
    "added-mask": Call(64, 130, 200, mask="added", options=ENTROPY),
    "scale": Call(64, 130, 200, scale=lambda device: -0.3, options=ENTROPY),
    "scale-per-head": Call(64, 130, 200, scale=lambda d: torch.tensor([0.1, 0.2, -0.1, 0], device=d), options=ENTROPY),
    "grouped-heads": Call(64, 130, 200, heads_kv=2, options={"enable_gqa": True, **ENTROPY}),
    "strided": Call(80, 130, 130, strided=True, options=ENTROPY),
    "map": Call(64, 256, 77, torch.float16, options={"map_keys": (0, 77)}),
    "map-of-some": Call(64, 200, 333, options={"map_keys": (100, 177), "return_entropy": True}),
    "backward": Call(64, 130, 200, torch.float16, gradient=True, options={"return_entropy": True}),
    "backward-map": Call(40, 130, 77, gradient=True, options={"map_keys": (0, 77)}),
}  # fmt: skip
SMALL = ("forward-bfloat16", "map")  # for an emulated card, at an eighth of the length


def launch(name: str, device: Device) -> None:
    """Only launch the kernels."""
    query, key, value, options = _made(CALLS[name], device.where, 1)
    _results(query, key, value, options | {"impl": "triton"}, CALLS[name].gradient)


def run(name: str, device: Device) -> float:
    """The largest error of a result or gradient, relative to the allowed error.

    Raises:
        WrongResult: an error is larger than allowed, or NaN.
    """
    call = CALLS[name]
    shorter = 8 if device.emulated else 1
    query, key, value, options = _made(call, device.where, shorter)
    found = _results(query, key, value, options | {"impl": "triton"}, call.gradient)
    exact_options = {n: t.double() if torch.is_tensor(t) and t.is_floating_point() else t for n, t in options.items()}
    wide = [t.detach().double() for t in (query, key, value)]
    exact = _results(*wide, exact_options | {"impl": "reference"}, call.gradient)
    worst = 0.0
    for result, one in found.items():
        truth = exact[result]
        error = ((one.double() - truth).norm() / truth.norm().clamp_min(1e-3)).item()
        worst = max(worst, error / ALLOWED[call.dtype])
        if not error <= ALLOWED[call.dtype]:
            raise WrongResult(f"{result}: relative error {error:.3g}, allowed is {ALLOWED[call.dtype]:.3g}")
    return worst


def _made(call: Call, where: torch.device, shorter: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    n, m = max(1, call.seqlen_q // shorter), max(1, call.seqlen_k // shorter)
    if call.strided:  # as after a projection to query, key and value
        packed = torch.randn(2, n, 3, call.heads, call.head_dim, dtype=call.dtype, device=where)
        query, key, value = (t.transpose(1, 2) for t in packed.unbind(2))
    else:
        shapes = ((call.heads, n), (call.heads_kv, m), (call.heads_kv, m))
        query, key, value = (torch.randn(2, *s, call.head_dim, dtype=call.dtype, device=where) for s in shapes)
    options = dict(call.options)
    if "map_keys" in options:
        options["map_keys"] = tuple(min(m, end // shorter) for end in options["map_keys"])
    if call.mask:
        keep = torch.rand(2, 1, n, m, device=where) > 0.4
        added = torch.randn(2, 1, n, m, dtype=call.dtype, device=where).masked_fill(~keep, -torch.inf)
        options["attn_mask"] = keep if call.mask == "bool" else added
    scale = call.scale(where)
    return query, key, value, options | ({} if scale is None else {"scale": scale})


def _results(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any], gradient: bool) -> dict[str, Tensor]:
    leaves = [t.detach().requires_grad_(gradient) for t in (query, key, value)]
    with torch.set_grad_enabled(gradient):
        given = ea.attention(*leaves, **options)
    given = {"out": given} if torch.is_tensor(given) else given._asdict()
    results = {name: t for name, t in given.items() if t is not None}
    if gradient:
        loss = sum(t.double().square().sum() for t in results.values())
        derived = torch.autograd.grad(loss, leaves)
        results |= dict(zip(("dq", "dk", "dv"), derived, strict=True))
    return {name: t.detach() for name, t in results.items()}


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"calls to make (default all): {', '.join(CALLS)}")
    parser.add_argument("--device", default="cuda", help="cuda, or emulated:sm_90")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in CALLS]
    if unknown:
        parser.error(f"NAME: expected some of {', '.join(CALLS)}, got {', '.join(unknown)}")
    with opened(args.device) as device:
        for name in args.names or CALLS:
            print(f"{name}: {run(name, device):.2f} of the allowed error", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
