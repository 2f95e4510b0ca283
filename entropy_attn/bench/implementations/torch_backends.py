"""Torch's attention: each backend of SDPA, and compiled FlexAttention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropy_attn.bench.implementations.contract import Ask, Implementation, Results, half_on_cuda, not_installed

MAX_SHAPES = 256  # FlexAttention compiles for each shape, and torch's default limit is 8


def _sdpa(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    return {"out": F.scaled_dot_product_attention(query, key, value)}


def forced(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """One backend; it raises RuntimeError for calls that it does not support."""
    with sdpa_kernel(backend):
        return {"out": F.scaled_dot_product_attention(query, key, value)}


def _flash_lse(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)[:2]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[:2]


def _efficient_lse(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse = attend(query, key, value, None, True, scale=scale)[:2]
    return out, lse[..., : query.shape[2]]  # rows are padded


def _cudnn_lse(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, scale=scale)[:2]
    return out, lse.reshape(query.shape[:3])


@functools.cache
def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
    # fullgraph: beyond the limit torch would run without compilation
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def flex_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Output and lse, both differentiable."""
    from torch.nn.attention.flex_attention import AuxRequest

    out, more = _flex()(query, key, value, scale=scale, return_aux=AuxRequest(lse=True), **options)
    return out, more.lse


def _flex_maximum(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Every statistic that FlexAttention has: the lse, and the largest score of each row, which is not kept."""
    from torch.nn.attention.flex_attention import AuxRequest

    out, more = _flex()(query, key, value, return_aux=AuxRequest(lse=True, max_scores=True))
    return out, more.lse


def _by_flex(options: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    if ask.task == "plain":
        return {"out": _flex()(query, key, value, **options)}
    return _with_lse(functools.partial(flex_lse, **options), query, key, value, ask)


def _with_lse(
    attend: Callable[..., tuple[Tensor, Tensor]], query: Tensor, key: Tensor, value: Tensor, ask: Ask
) -> Results:
    return dict(zip(("out", "lse"), attend(query, key, value), strict=True))


def _too_wide(limit: int, query: Tensor, value: Tensor) -> list[str]:
    width = max(query.shape[3], value.shape[3])
    return [f"expected head_dim up to {limit}, got {width}"] if width > limit else []


def _flash_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    reasons = [] if query.device.type == "cpu" else half_on_cuda(query, key, value, ask)
    return reasons + _too_wide(256, query, value)


def on_cuda(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    return [] if query.device.type == "cuda" else [f"expected tensors on a CUDA device, got {query.device.type}"]


def _cudnn_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    return half_on_cuda(query, key, value, ask) + _too_wide(128 if ask.gradient else 256, query, value)


# The operators that return the lse are private in torch, and the lse has no gradient.
LSE = {
    "flash": (_flash_lse, _flash_reasons),
    "cudnn": (_cudnn_lse, _cudnn_reasons),
    "efficient": (_efficient_lse, on_cuda),
}
_BACKENDS = {
    "flash": (SDPBackend.FLASH_ATTENTION, _flash_reasons),
    "cudnn": (SDPBackend.CUDNN_ATTENTION, _cudnn_reasons),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, on_cuda),
    "math": (SDPBackend.MATH, lambda *call: []),
}
_BY_FLASH: dict[str, Any] = {"kernel_options": {"BACKEND": "FLASH"}}  # FlashAttention 4 instead of Triton
TORCH = (
    Implementation("sdpa", _sdpa),  # torch's own choice
    *(
        Implementation(
            f"sdpa-{name}", functools.partial(forced, backend), reasons=reasons, matrices=3.0 * (name == "math")
        )
        for name, (backend, reasons) in _BACKENDS.items()
    ),
    Implementation("flex", functools.partial(_by_flex, {}), ("plain", "lse"), reasons=on_cuda),
    Implementation("flex-max", functools.partial(_with_lse, _flex_maximum), ("lse",), reasons=on_cuda),
    Implementation(
        "flex-flash",
        functools.partial(_by_flex, _BY_FLASH),
        ("plain", "lse"),
        missing=functools.partial(not_installed, "flash_attn.cute", "pip install flash-attn-4"),
        reasons=half_on_cuda,
    ),
    *(
        Implementation(f"aten-{name}", functools.partial(_with_lse, lse), ("lse",), ("forward",), reasons)
        for name, (lse, reasons) in LSE.items()
    ),
)
