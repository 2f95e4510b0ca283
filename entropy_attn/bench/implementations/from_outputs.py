"""The entropy from outputs of attention that returns the lse: entropy = lse - scale * q . (sum of p k).

The sum over keys is the output of attention whose values are the keys. "vk-*" makes a second call with V = K. "cat-*"
makes one call with the columns of value and key side by side; kernels that want head dims alike get zeros in the
queries and keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.bench.implementations.contract import PASSES, Ask, Implementation, Results
from entropy_attn.bench.implementations.flash_attention import flash4_lse, flash4_missing, flash_reasons
from entropy_attn.bench.implementations.torch_backends import LSE, flex_lse, on_cuda

# In half precision, sum(p k) loses digits: 3e-4 to 1.2e-2 nats in bfloat16.
SLACK = 64.0
Attend = Callable[..., tuple[Tensor, Tensor]]  # (query, key, value, scale) -> output, lse


def entropy(query: Tensor, mean_key: Tensor, lse: Tensor) -> Tensor:
    """From the lse and the probabilities' mean of the keys."""
    logit = (query.to(lse.dtype) * mean_key.to(lse.dtype)).sum(dim=-1) * query.shape[-1] ** -0.5
    return lse - logit


def two_calls(attend: Attend, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    out, lse = attend(query, key, value)
    mean_key, _ = attend(query, key, key)
    return {"out": out, "entropy": entropy(query, mean_key, lse)}


def one_call(attend: Attend, pad: bool, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """One call with [value | key] in the place of the value; `pad` widens query and key to the same head dim."""
    width = value.shape[3]
    wide = [F.pad(t, (0, width)) if pad else t for t in (query, key)]
    both, lse = attend(*wide, torch.cat((value, key), dim=3), scale=query.shape[3] ** -0.5)
    return {"out": both[..., :width], "entropy": entropy(query, both[..., width:], lse)}


def _with_wide_value(reasons: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The reasons against the one call: its value is as wide as value and key together."""

    def of_one_call(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
        width = value.shape[3] + key.shape[3]
        return reasons(query, key, value[..., :1].expand(*value.shape[:3], width), ask)

    return of_one_call


# (name, attend, missing, reasons, passes, whether head dims must be alike)
_KERNELS: tuple[tuple[str, Attend, Callable[[], list[str]], Callable[..., list[str]], tuple[str, ...], bool], ...] = (
    *((name, lse, list, reasons, ("forward",), name == "flash") for name, (lse, reasons) in LSE.items()),
    ("flex", flex_lse, list, on_cuda, PASSES, False),
    ("flash-attn-4", flash4_lse, flash4_missing, flash_reasons, PASSES, False),
)
FROM_OUTPUTS = tuple(
    Implementation(f"{trick}-{name}", attend, ("entropy",), passes, missing=missing, reasons=reasons, slack=SLACK)
    for name, lse, missing, of_call, passes, pad in _KERNELS
    for trick, attend, reasons in (
        ("vk", functools.partial(two_calls, lse), of_call),
        ("cat", functools.partial(one_call, lse, pad), _with_wide_value(of_call)),
    )
)
