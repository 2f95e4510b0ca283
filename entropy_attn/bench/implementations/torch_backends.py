"""Torch's attention: each backend of SDPA, and compiled FlexAttention.

A backend that returns the lse can compute the entropy with one more attention call in which V = K:
entropy = lse - scale * q . (sum of p k). The names of these implementations begin with "vk".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropy_attn.bench.implementations.contract import Ask, Implementation, Results, half_on_cuda

# In half precision, V = K loses digits in sum(p k): 3e-4 to 1.2e-2 nats in bfloat16.
VK_SLACK = 64.0
MAX_SHAPES = 256  # FlexAttention compiles for each shape, and torch's default limit is 8


def _sdpa(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    return {"out": F.scaled_dot_product_attention(query, key, value)}


def _forced(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """One backend; it raises RuntimeError for calls that it does not support."""
    with sdpa_kernel(backend):
        return {"out": F.scaled_dot_product_attention(query, key, value)}


def _flash_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[:2]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]


def _efficient_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
    return out, lse[..., : query.shape[2]]  # rows are padded


def _cudnn_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)[:2]
    return out, lse.reshape(query.shape[:3])


@functools.cache
def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
    # fullgraph: beyond the limit torch would run without compilation
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _flex_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest

    out, more = _flex()(query, key, value, return_aux=AuxRequest(lse=True))
    return out, more.lse


def _by_flex(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    if ask.task == "plain":
        return {"out": _flex()(query, key, value)}
    return _with_lse(_flex_lse, query, key, value, ask)


def _with_lse(
    attend: Callable[..., tuple[Tensor, Tensor]], query: Tensor, key: Tensor, value: Tensor, ask: Ask
) -> Results:
    return dict(zip(("out", "lse"), attend(query, key, value), strict=True))


def _by_vk(
    attend: Callable[..., tuple[Tensor, Tensor]], query: Tensor, key: Tensor, value: Tensor, ask: Ask
) -> Results:
    out, lse = attend(query, key, value)
    mean_key, _ = attend(query, key, key)
    logit = (query.to(lse.dtype) * mean_key.to(lse.dtype)).sum(dim=-1) * query.shape[-1] ** -0.5
    return {"out": out, "entropy": lse - logit}


def _flash_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    reasons = [] if query.device.type == "cpu" else half_on_cuda(query, key, value, ask)
    return reasons + ([f"expected head_dim up to 256, got {query.shape[3]}"] if query.shape[3] > 256 else [])


def _efficient_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    return [] if query.device.type == "cuda" else [f"expected tensors on a CUDA device, got {query.device.type}"]


def _cudnn_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    limit = 128 if ask.gradient else 256
    wide = query.shape[3] > limit and f"expected head_dim up to {limit}, got {query.shape[3]}"
    return half_on_cuda(query, key, value, ask) + ([wide] if wide else [])


def _flex_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    return [] if query.device.type == "cuda" else [f"expected tensors on a CUDA device, got {query.device.type}"]


# The operators that return the lse are private in torch, and the lse has no gradient.
_LSE = {
    "flash": (_flash_lse, _flash_reasons),
    "cudnn": (_cudnn_lse, _cudnn_reasons),
    "efficient": (_efficient_lse, _efficient_reasons),
}
_BACKENDS = {
    "flash": (SDPBackend.FLASH_ATTENTION, _flash_reasons),
    "cudnn": (SDPBackend.CUDNN_ATTENTION, _cudnn_reasons),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, _efficient_reasons),
    "math": (SDPBackend.MATH, lambda *call: []),
}
TORCH = (
    Implementation("sdpa", _sdpa),  # torch's own choice
    *(
        Implementation(
            f"sdpa-{name}", functools.partial(_forced, backend), reasons=reasons, matrices=3.0 * (name == "math")
        )
        for name, (backend, reasons) in _BACKENDS.items()
    ),
    Implementation("flex", _by_flex, ("plain", "lse"), reasons=_flex_reasons),
    *(
        Implementation(f"aten-{name}", functools.partial(_with_lse, lse), ("lse",), ("forward",), reasons)
        for name, (lse, reasons) in _LSE.items()
    ),
    *(
        Implementation(
            f"vk-{name}", functools.partial(_by_vk, lse), ("entropy",), ("forward",), reasons, slack=VK_SLACK
        )
        for name, (lse, reasons) in _LSE.items()
    ),
    Implementation(
        "vk-flex", functools.partial(_by_vk, _flex_lse), ("entropy",), reasons=_flex_reasons, slack=VK_SLACK
    ),
)
