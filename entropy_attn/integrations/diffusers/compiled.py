"""Routed layers under torch.compile: an operator calls the policy, so no graph depends on what it returns.

Of a policy of scales it returns the scale, and the attention is part of the graph. Where there is more to a call (key
groups, records, a mix) the operator is the whole attention call. Either runs when the graph runs, in the thread and the
step of that run, and gets the layer as a tensor, so the repeated blocks of a transformer are one graph.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

from entropy_attn.integrations.diffusers.layers import kind_by_context
from entropy_attn.integrations.diffusers.private import AttentionLayer
from entropy_attn.integrations.diffusers.processors import traced
from entropy_attn.kernels.common.arguments import allocate_like
from entropy_attn.ops import api as ops
from entropy_attn.ops.autocast import as_autocast, autocast_dtype, no_autocast
from entropy_attn.ops.operator import gradient_like, laid_out, no_second_order
from entropy_attn.ops.recomputed import recomputed_gradients
from entropy_attn.scale import Kind

NUMBER = "_entropy_attn_number"  # of the layer in its handle, a tensor
_KINDS: tuple[Kind, ...] = ("self", "cross", "joint")
_TEXTS: tuple[str | None, ...] = (None, "first", "last", "all")
_HANDLES: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_COUNTER = itertools.count()


def number_of(handle: Any) -> int:
    """A new number, by which the operator finds this handle."""
    number = next(_COUNTER)
    _HANDLES[number] = handle
    return number


@torch.library.custom_op("entropy_attn::layer_scale", mutates_args=())
def layer_scale(
    layer: Tensor,
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
) -> Tensor:
    """The scale of every head, (H,), of one attention call; `default` where the policy returns None."""
    routing = _HANDLES[handle]
    call = routing.layer_call(int(layer), _kind(kind, text), index)
    chosen = routing.router.scale_of(call, seqlen_q, seqlen_k, num_heads, head_dim)
    if not isinstance(chosen, Tensor):
        return torch.full((num_heads,), default if chosen is None else chosen, dtype=torch.float32, device=device)
    routing.router.refuse_gradients(chosen)
    return chosen.to(device, torch.float32).expand(num_heads).clone()


@layer_scale.register_fake
def _(
    layer: Tensor,
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
) -> Tensor:
    return torch.empty((num_heads,), dtype=torch.float32, device=device)


@torch.library.custom_op("entropy_attn::routed_attention", mutates_args=())
def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    layer: Tensor,
    handle: int,
    kind: int,
    text: int,
    index: int,
    samples: int,
    autocast: torch.dtype | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """What the router answers to an attention call, and the number of the denoiser's call that it belongs to."""
    routing = _HANDLES[handle]
    attend = routing.traced_attend(int(layer), _kind(kind, text), index, samples)
    with torch.no_grad(), _autocast(query, autocast):
        out = attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return _as_promised(out, query), torch.tensor(routing.router.denoiser_calls)


@routed_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    width = value.shape[-1]
    out = allocate_like(query, width) if query.dim() == 4 else query.new_empty((*query.shape[:-1], width))
    return out, torch.empty((), dtype=torch.int64)


def _as_promised(out: Tensor, query: Tensor) -> Tensor:
    return laid_out(out, query) if query.dim() == 4 else out.contiguous()


@torch.library.custom_op("entropy_attn::routed_attention_backward", mutates_args=())
def _routed_attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    layer: Tensor,
    denoiser_call: Tensor,
    grad_out: Tensor,
    handle: int,
    kind: int,
    text: int,
    index: int,
    samples: int,
    autocast: torch.dtype | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of query, key, value and attn_mask: the router answers once more, as for gradient checkpointing."""
    routing, tensors = _HANDLES[handle], (query, key, value, attn_mask)
    if int(denoiser_call) != routing.router.denoiser_calls:
        raise RuntimeError(
            "the denoiser was called again before the backward pass of its compiled call: take the gradient of one "
            "call after the other, or do not compile"
        )
    if dropout_p > 0.0:
        raise RuntimeError(
            f"dropout_p={dropout_p}: the backward pass computes a compiled call again, with other random numbers; "
            "set dropout to 0, or do not compile"
        )

    def answer(*given: Tensor | None) -> tuple[Tensor]:
        attend = routing.traced_attend(int(layer), _kind(kind, text), index, samples, record=False)
        with _autocast(query, autocast):
            return (attend(*given, dropout_p, is_causal, scale, enable_gqa),)

    found = zip(tensors, recomputed_gradients(answer, tensors, (grad_out,), needs), strict=True)
    return [query.new_empty(0) if g is None else gradient_like(cast(Tensor, t), g) for t, g in found]


@_routed_attention_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *rest: Any) -> list[Tensor]:
    pairs = zip((query, key, value, attn_mask), rest[-1], strict=True)
    return [gradient_like(cast(Tensor, t)) if need else query.new_empty(0) for t, need in pairs]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[5:]
    ctx.save_for_backward(*inputs[:5], output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    found = _routed_attention_backward(*ctx.saved_tensors, grad_out, *ctx.options, needs)
    return (*(t if need else None for t, need in zip(found, needs, strict=True)), *(None,) * 11)


routed_attention.register_autograd(_backward, setup_context=_setup)
_routed_attention_backward.register_autograd(no_second_order)


def _kind(kind: int, text: int) -> tuple[Kind, str | None] | None:
    return None if kind < 0 else (_KINDS[kind], _TEXTS[text])


def _autocast(query: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """The region that the call was traced in."""
    device = query.device.type
    return no_autocast(device) if dtype is None else torch.autocast(device, dtype=dtype)


def trace_layer(
    handle: int,
    by_call: bool,
    per_sample: bool,
    whole: bool,
    module: AttentionLayer,
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """Call a layer while torch.compile traces it.

    by_call: the arguments of the call decide its kind.
    per_sample: the layer attends once for each sample.
    whole: the attention calls are operators.
    """
    kind, text, samples = -1, 0, 0
    if by_call:
        name, text_position = kind_by_context(module, *args, **kwargs)
        kind, text = _KINDS.index(name), _TEXTS.index(text_position)
    if per_sample:
        samples = len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
    layer, count = module.__dict__[NUMBER], 0

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        nonlocal count
        index, count = count, count + 1
        if whole:
            dtype = autocast_dtype(query.device.type)
            query, key, value = as_autocast(query, key, value)
            return routed_attention(
                query, key, value, attn_mask, layer, handle, kind, text, index, samples, dtype, dropout_p, is_causal,
                scale, enable_gqa,
            )[0]  # fmt: skip
        heads, seqlen_q, head_dim = query.shape[-3:]
        default = head_dim**-0.5 if scale is None else scale
        chosen = layer_scale(
            layer, handle, kind, text, index, seqlen_q, key.shape[-2], heads, head_dim, default, query.device
        )
        return ops.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, chosen, enable_gqa)

    outer, traced.attend = traced.attend, attend
    try:
        return call(*args, **kwargs)
    finally:
        traced.attend = outer
