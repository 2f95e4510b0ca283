"""Routed layers under torch.compile: an operator calls the policy, so no graph depends on the scale that it returns.

The operator runs when the graph runs, in the thread and the step of that run. It gets the layer as a tensor, so the
repeated blocks of a transformer are one graph.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch

from entropy_attn.integrations.diffusers.layers import kind_by_context
from entropy_attn.integrations.diffusers.private import AttentionLayer
from entropy_attn.integrations.diffusers.processors import traced
from entropy_attn.ops import api as ops

NUMBER = "_entropy_attn_number"  # of the layer in its handle, a tensor
_KINDS = ("self", "cross", "joint")
_TEXTS = (None, "first", "last", "all")
_HANDLES: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_COUNTER = itertools.count()


def number_of(handle: Any) -> int:
    """A new number, by which the operator finds this handle."""
    number = next(_COUNTER)
    _HANDLES[number] = handle
    return number


@torch.library.custom_op("entropy_attn::layer_scale", mutates_args=())
def layer_scale(
    layer: torch.Tensor,
    handle: int,
    kind: int,
    text: int,
    index: int,
    seqlen_q: int,
    seqlen_k: int,
    num_heads: int,
    head_dim: int,
    default: float,
    device: torch.device,
) -> torch.Tensor:
    """The scale of every head, (H,), of one attention call; `default` where the policy returns None."""
    routing = _HANDLES[handle]
    call = routing.layer_call(int(layer), None if kind < 0 else (_KINDS[kind], _TEXTS[text]), index)
    chosen = routing.router.scale_of(call, seqlen_q, seqlen_k, num_heads, head_dim)
    if not isinstance(chosen, torch.Tensor):
        return torch.full((num_heads,), default if chosen is None else chosen, dtype=torch.float32, device=device)
    if chosen.requires_grad:
        raise ValueError(
            f"scale policy {routing.router.policy!r} returned a tensor with a gradient, which torch.compile would lose"
        )
    return chosen.to(device, torch.float32).expand(num_heads).clone()


@layer_scale.register_fake
def _(
    layer: torch.Tensor,
    handle: int,
    kind: int,
    text: int,
    index: int,
    seqlen_q: int,
    seqlen_k: int,
    num_heads: int,
    head_dim: int,
    default: float,
    device: torch.device,
) -> torch.Tensor:
    return torch.empty((num_heads,), dtype=torch.float32, device=device)


def trace_layer(
    handle: int, by_call: bool, module: AttentionLayer, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> Any:
    """Call a layer while torch.compile traces it. by_call: the arguments of the call decide its kind."""
    kind, text = -1, 0
    if by_call:
        name, text_position = kind_by_context(module, *args, **kwargs)
        kind, text = _KINDS.index(name), _TEXTS.index(text_position)
    layer, count = module.__dict__[NUMBER], 0

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        nonlocal count
        heads, seqlen_q, head_dim = query.shape[-3:]
        default = head_dim**-0.5 if scale is None else scale
        chosen = layer_scale(
            layer, handle, kind, text, count, seqlen_q, key.shape[-2], heads, head_dim, default, query.device
        )
        count += 1
        return ops.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, chosen, enable_gqa)

    outer, traced.attend = traced.attend, attend
    try:
        return call(*args, **kwargs)
    finally:
        traced.attend = outer
