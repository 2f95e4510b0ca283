"""The operator that autograd and torch.compile see: attention with its statistics as one opaque, differentiable call.

A kernel launch cannot be traced, and a loop over blocks of rows cannot be traced without unrolling it for one length.
As a `torch.library.custom_op` the call is a single node of the graph for every length, with a registered gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..errors import Unsupported
from ..kernels.common.arguments import allocate_like
from ..kernels.common.call import AllResults, AttentionCall, Results
from .fused import attention_fused, attention_fused_all, attention_fused_backward
from .key_groups import calls_with_one_table, run_by_group
from .sdpa import attention_sdpa, attention_sdpa_backward
from .tensor_kinds import traced


class Computation(NamedTuple):
    """What the operator runs."""

    forward: Callable[[AttentionCall], Results]
    backward: Callable[..., tuple[Tensor | None, ...]]


# Operators take strings, not functions: these name them.
COMPUTATIONS = {
    "triton": Computation(attention_fused, attention_fused_backward),
    "sdpa": Computation(attention_sdpa, attention_sdpa_backward),
}


def run_fused(call: AttentionCall) -> Results:
    """The fused kernels, by the operator only where autograd or a tracer needs it.

    A launch on a GPU costs less than the operator around it.
    """
    if call.key.shape[1] != call.value.shape[1]:
        call = _one_group_size(call)
    if call.needs_gradient or torch.compiler.is_compiling() or type(call.query) is not Tensor or traced():
        return attention_operator(call, "triton")
    if call.scale is not None:
        call.scale = _on_the_host(call.scale)
    return attention_fused(call)


def run_fused_all(call: AttentionCall) -> AllResults:
    """The same for every call, a group of queries after the other, and with the statistics of `row_statistics`."""
    if isinstance(call.key_rows, Tensor):
        return run_by_group(call, run_fused_all, calls_with_one_table)
    if not call.row_statistics:
        return AllResults(*run_fused(call))
    if call.key.shape[1] != call.value.shape[1]:
        call = _one_group_size(call)
    call.scale = _on_the_host(call.scale)
    return attention_fused_all(call)


def run_sdpa(call: AttentionCall) -> Results:
    """torch's operations; a compiled graph holds the statistics as one operator."""
    if call.statistics and torch.compiler.is_compiling():
        return attention_operator(call, "sdpa")
    return attention_sdpa(call)


def attention_operator(call: AttentionCall, impl: str) -> Results:
    """The call as one node, which computes by `COMPUTATIONS[impl]`."""
    scale = scale_as_tensor(call.scale)
    start, stop = call.map_keys or (0, 0)
    if isinstance(call.key_rows, Tensor):
        raise ValueError("key_rows: expected a range of queries, got groups, which are calls of their own")
    out, lse, entropy, head_mean = _attention(
        call.query, call.key, call.value, call.attn_mask, scale, call.is_causal, call.return_entropy, start, stop,
        impl, call.key_scale, call.key_bias, *(call.key_rows or (0, 0)),
    )  # fmt: skip
    return (
        out,
        lse if call.return_lse else None,
        entropy if call.return_entropy else None,
        head_mean if call.map_keys else None,
    )


def scale_as_tensor(scale: float | Tensor | None) -> Tensor | None:
    """A number times a tensor: it would be compiled into the graph, and a new one compile it anew."""
    return torch.ones((), dtype=torch.float64) * scale if isinstance(scale, float) else scale


def _one_group_size(call: AttentionCall) -> AttentionCall:
    """Key and value with as many heads each: the kernels take one number of query heads per key head."""
    heads = math.lcm(call.key.shape[1], call.value.shape[1])
    key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (call.key, call.value))
    return replace(call, key=key, value=value)


def _on_the_host(scale: float | Tensor | None) -> float | Tensor | None:
    """A 0-d tensor on the CPU as its number, which the kernels take as an argument; reading it waits for nothing."""
    if isinstance(scale, Tensor) and scale.dim() == 0 and scale.device.type == "cpu":
        return scale.item()
    return scale


@torch.library.custom_op(add_op_namespace_prefix("attention"), mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: Tensor | None,
    is_causal: bool,
    return_entropy: bool,
    map_start: int,
    map_stop: int,
    impl: str,
    key_scale: Tensor | None = None,
    key_bias: Tensor | None = None,
    key_rows_start: int = 0,
    key_rows_stop: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = AttentionCall(
        query, key, value, attn_mask, is_causal, _on_the_host(scale), return_lse=True, return_entropy=return_entropy,
        map_keys=(map_start, map_stop) if map_stop > map_start else None,
        key_scale=key_scale, key_bias=key_bias, key_rows=_key_rows(key_rows_start, key_rows_stop),
    )  # fmt: skip
    with torch.no_grad():
        results = COMPUTATIONS[impl].forward(call)
    # As the fake below promises; the map's rows may be padded for wide stores.
    out = laid_out(results[0], query)
    lse, entropy, head_mean = (absent(query) if t is None else t.contiguous() for t in results[1:])
    return out, lse, entropy, head_mean


def _key_rows(start: int, stop: int) -> tuple[int, int] | None:
    """Operators take numbers: 0 and 0 stand for all queries."""
    return (start, stop) if stop > start else None


def laid_out(t: Tensor, like: Tensor) -> Tensor:
    """Results of the operators have the layout that the kernels and the fakes allocate, whoever computed them."""
    empty = allocate_like(like, t.shape[3], t.dtype)
    return t if t.stride() == empty.stride() else empty.copy_(t)


def absent(query: Tensor) -> Tensor:
    """An operator returns a tensor even where there is nothing to return."""
    return query.new_empty(0, dtype=statistics_dtype(query))


def statistics_dtype(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


@_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: Tensor | None,
    is_causal: bool,
    return_entropy: bool,
    map_start: int,
    map_stop: int,
    impl: str,
    key_scale: Tensor | None = None,
    key_bias: Tensor | None = None,
    key_rows_start: int = 0,
    key_rows_stop: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, seqlen_q, _ = query.shape
    out = allocate_like(query, value.shape[3])
    dtype = statistics_dtype(query)
    lse = query.new_empty((batch, heads, seqlen_q), dtype=dtype)
    entropy = torch.empty_like(lse) if return_entropy else absent(query)
    if map_stop > map_start:
        head_mean = query.new_empty((batch, seqlen_q, map_stop - map_start), dtype=dtype)
    else:
        head_mean = absent(query)
    return out, lse, entropy, head_mean


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, attn_mask, scale, *options, key_scale, key_bias, start, stop = inputs
    ctx.options, ctx.key_rows = options, (start, stop)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, attn_mask, scale, *output[:3], key_scale, key_bias)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    is_causal, return_entropy, map_start, map_stop, impl = ctx.options
    wanted = (True, True, return_entropy, map_stop > map_start)
    given = [g if want else None for g, want in zip(grads, wanted, strict=True)]
    *saved, key_scale, key_bias = ctx.saved_tensors
    computed = _attention_backward(
        *saved, *given, is_causal, map_start, map_stop, impl, needs, key_scale, key_bias, *ctx.key_rows
    )
    results = [t if need else None for t, need in zip(computed, needs, strict=True)]
    return (*results, *(None,) * 9)


@torch.library.custom_op(add_op_namespace_prefix("attention_backward"), mutates_args=())
def _attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: Tensor | None,
    out: Tensor,
    lse: Tensor,
    entropy: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_map: Tensor | None,
    is_causal: bool,
    map_start: int,
    map_stop: int,
    impl: str,
    needs: list[bool],
    key_scale: Tensor | None = None,
    key_bias: Tensor | None = None,
    key_rows_start: int = 0,
    key_rows_stop: int = 0,
) -> list[Tensor]:
    """Gradients of query, key, value, attn_mask and scale."""
    call = AttentionCall(
        query, key, value, attn_mask, is_causal, scale if needs[4] else _on_the_host(scale),
        map_keys=None if grad_map is None else (map_start, map_stop),
        key_scale=key_scale, key_bias=key_bias, key_rows=_key_rows(key_rows_start, key_rows_stop),
    )  # fmt: skip
    grads = (grad_out, grad_lse, grad_entropy, grad_map)
    computed = COMPUTATIONS[impl].backward(call, (out, lse, entropy), grads, tuple(needs))
    inputs: tuple[Any, ...] = (query, key, value, attn_mask, scale)  # a gradient that is there has an input
    return [absent(query) if t is None else gradient_like(of, t) for t, of in zip(computed, inputs, strict=True)]


@_attention_backward.register_fake
def _(query: Tensor, *rest: Any) -> list[Tensor]:
    inputs, needs = (query, *rest[:4]), rest[15]  # after tensors and options
    return [gradient_like(t) if need else absent(query) for t, need in zip(inputs, needs, strict=True)]


def gradient_like(t: Tensor, computed: Tensor | None = None) -> Tensor:
    """The gradient of `t` in the layout that both the operator and its fake give it: dense for a mask or a scale."""
    if t.dim() == 4:
        return allocate_like(t, t.shape[3]) if computed is None else laid_out(computed, t)
    return t.new_empty(t.shape) if computed is None else computed.contiguous()


def no_second_order(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError("the fused attention has no second derivative; impl='reference' has")


def no_vmap(info: Any, in_dims: Any, *arguments: Any) -> None:
    raise Unsupported(
        "triton or sdpa", ['inside torch.vmap: put that dimension into the batch, or use impl="reference"']
    )


_attention.register_vmap(no_vmap)
_attention_backward.register_vmap(no_vmap)
_attention.register_autograd(_backward, setup_context=_setup)
_attention_backward.register_autograd(no_second_order)
