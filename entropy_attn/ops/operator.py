"""The operator that autograd and torch.compile see: attention with its statistics as one opaque, differentiable call.

A kernel launch cannot be traced, and neither can a loop over row blocks be, without unrolling it for one length. As a
`torch.library.custom_op` the call is a single node of the graph whatever the lengths are, with a gradient of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from entropy_attn.errors import Unsupported
from entropy_attn.kernels.common.arguments import allocate_like
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.ops.sdpa import attention_sdpa, attention_sdpa_backward
from entropy_attn.ops.tensor_kinds import traced

Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # out, lse, entropy, map


def attention_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | Tensor | None,
    return_lse: bool,
    return_entropy: bool,
    map_keys: tuple[int, int] | None,
    impl: str,
) -> Results:
    """``(out, lse, entropy, map)`` by "triton" or "sdpa" for a call that was checked; None for what was not asked for.

    Grouped heads are told from the shapes. Without a gradient, and where nothing writes the call down, it goes straight
    to the kernels, whose launch on a GPU costs less than the operator around it.
    """
    if impl == "triton" and key.shape[1] != value.shape[1]:
        heads = math.lcm(key.shape[1], value.shape[1])  # the kernels know one size of group
        key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value))
    tensors = (query, key, value, attn_mask, scale)
    wants_grad = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "map_keys": map_keys, "impl": impl}
    if not wants_grad and not torch.compiler.is_compiling() and type(query) is Tensor and not traced():
        return _compute(query, key, value, scale=scale, return_lse=return_lse, return_entropy=return_entropy, **options)
    if isinstance(scale, float):
        # Times a tensor: a number would be compiled into the graph, and a new one compile it anew.
        scale = torch.ones((), dtype=torch.float64) * scale
    start, stop = map_keys or (0, 0)
    out, lse, entropy, head_mean = _attention(
        query, key, value, attn_mask, scale, is_causal, return_entropy, start, stop, impl
    )
    return out, lse if return_lse else None, entropy if return_entropy else None, head_mean if map_keys else None


def _compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | Tensor | None,
    return_lse: bool,
    return_entropy: bool,
    map_keys: tuple[int, int] | None,
    impl: str,
) -> Results:
    given = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": _on_the_host(scale)}
    wanted = {"return_lse": return_lse, "return_entropy": return_entropy}
    if impl == "sdpa":
        grouped = query.shape[1] != key.shape[1]
        return attention_sdpa(query, key, value, **given, **wanted, map_keys=map_keys, enable_gqa=grouped)
    call = AttentionCall(query, key, value, **given, **wanted, map_keys=map_keys)
    if map_keys:
        from entropy_attn.kernels.maps.launch import attention_forward_with_map

        return attention_forward_with_map(call)
    from entropy_attn.kernels.forward.launch import attention_forward

    return *attention_forward(call), None


def _on_the_host(scale: float | Tensor | None) -> float | Tensor | None:
    """A 0-d tensor of the CPU as its number, which the kernels take as an argument; reading it waits for nothing."""
    if isinstance(scale, Tensor) and scale.dim() == 0 and scale.device.type == "cpu":
        return scale.item()
    return scale


@torch.library.custom_op("entropy_attn::attention", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    map_keys = (map_start, map_stop) if map_stop > map_start else None
    with torch.no_grad():
        results = _compute(
            query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, return_lse=True,
            return_entropy=return_entropy, map_keys=map_keys, impl=impl,
        )  # fmt: skip
    # As the fake below promises; the map's rows may be padded for wide stores.
    out = _laid_out(results[0], query)
    return (out, *(_absent(query) if t is None else t.contiguous() for t in results[1:]))


def _laid_out(t: Tensor, like: Tensor) -> Tensor:
    """Results of the operators have the one layout that the kernels and the fakes allocate, whoever computed them."""
    empty = allocate_like(like, t.shape[3], t.dtype)
    return t if t.stride() == empty.stride() else empty.copy_(t)


def _absent(query: Tensor) -> Tensor:
    """An operator must return a tensor also where there is nothing to return."""
    return query.new_empty(0, dtype=_statistics_dtype(query))


def _statistics_dtype(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


@_attention.register_fake
def _(query, key, value, attn_mask, scale, is_causal, return_entropy, map_start, map_stop, impl):
    batch, heads, seqlen_q, _ = query.shape
    out = allocate_like(query, value.shape[3])
    dtype = _statistics_dtype(query)
    lse = query.new_empty((batch, heads, seqlen_q), dtype=dtype)
    entropy = torch.empty_like(lse) if return_entropy else _absent(query)
    if map_stop > map_start:
        head_mean = query.new_empty((batch, seqlen_q, map_stop - map_start), dtype=dtype)
    else:
        head_mean = _absent(query)
    return out, lse, entropy, head_mean


def _setup(ctx, inputs, output):
    query, key, value, attn_mask, scale, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, attn_mask, scale, *output[:3])


def _backward(ctx, *grads):
    needs = list(ctx.needs_input_grad[:5])
    is_causal, return_entropy, map_start, map_stop, impl = ctx.options
    wanted = (True, True, return_entropy, map_stop > map_start)
    grads = [g if want else None for g, want in zip(grads, wanted, strict=True)]
    results = _attention_backward(*ctx.saved_tensors, *grads, is_causal, map_start, map_stop, impl, needs)
    results = [t if need else None for t, need in zip(results, needs, strict=True)]
    return *results, None, None, None, None, None


@torch.library.custom_op("entropy_attn::attention_backward", mutates_args=())
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
) -> list[Tensor]:
    """Gradients of query, key, value, attn_mask and scale."""
    names = ("grad_out", "grad_lse", "grad_entropy", "grad_map")
    grads = dict(zip(names, (grad_out, grad_lse, grad_entropy, grad_map), strict=True))
    map_keys = None if grad_map is None else (map_start, map_stop)
    given = {"attn_mask": attn_mask, "is_causal": is_causal, "map_keys": map_keys}
    if impl == "sdpa":
        results = attention_sdpa_backward(
            query, key, value, out, entropy, **grads, **given, scale=scale, needs=tuple(needs)
        )
    else:
        from entropy_attn.kernels.backward.launch import attention_backward

        dq, dk, dv, dscale = attention_backward(
            AttentionCall(query, key, value, **given, scale=scale if needs[4] else _on_the_host(scale)),
            out, lse, entropy, **grads,
            needs=(needs[0], needs[1], needs[2], needs[4]),
        )  # fmt: skip
        results = (dq, dk, dv, None, dscale)
    given = (query, key, value, attn_mask, scale)
    return [_absent(query) if t is None else _gradient_like(of, t) for t, of in zip(results, given, strict=True)]


@_attention_backward.register_fake
def _(query, key, value, attn_mask, scale, *rest):
    needs = rest[-1]
    given = (query, key, value, attn_mask, scale)
    return [_gradient_like(t) if need else _absent(query) for t, need in zip(given, needs, strict=True)]


def _gradient_like(t: Tensor, computed: Tensor | None = None) -> Tensor:
    """The gradient of ``t`` in the layout that both the operator and its fake give it: of a mask or a scale, dense."""
    if t.dim() == 4:
        return allocate_like(t, t.shape[3]) if computed is None else _laid_out(computed, t)
    return t.new_empty(t.shape) if computed is None else computed.contiguous()


def _no_second_order(ctx, *grads):
    raise NotImplementedError("the fused attention has no second derivative; impl='reference' has")


def _no_vmap(info, in_dims, *arguments):
    raise Unsupported(
        "triton or sdpa", ['inside of torch.vmap: put that dimension into the batch, or use impl="reference"']
    )


_attention.register_vmap(_no_vmap)
_attention_backward.register_vmap(_no_vmap)
_attention.register_autograd(_backward, setup_context=_setup)
_attention_backward.register_autograd(_no_second_order)
