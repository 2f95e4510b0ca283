"""Attention from torch's own operations: one fused call without statistics, exact row blocks with them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.kernels.common.tracing import constant_in_graphs
from entropy_attn.ops.reference import softmax_scale
from entropy_attn.ops.row_blocks import attention_row_blocks, row_gradients


def attention_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    return_entropy: bool = False,
    map_keys: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """``(out, lse, entropy, map)``, None for what was not asked for. Differentiable in every floating input."""
    if not (return_lse or return_entropy or map_keys):
        out = torch_attention(
            query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return out, None, None, None

    q, k, v, mask = _for_row_blocks(query, key, value, attn_mask, scale)
    with _no_autocast(q.device.type):
        out, lse, entropy, head_mean = attention_row_blocks(
            q, k, v, mask, is_causal, return_entropy=return_entropy, map_keys=map_keys
        )
    stats_dtype = torch.promote_types(query.dtype, torch.float32)
    lse, entropy, head_mean = (None if t is None else t.to(stats_dtype) for t in (lse, entropy, head_mean))
    return out.to(query.dtype), lse if return_lse else None, entropy, head_mean


def attention_sdpa_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    entropy: Tensor,
    *,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_map: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | Tensor | None,
    map_keys: tuple[int, int] | None,
    needs: tuple[bool, bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, attn_mask and scale, None where not needed, for use where nothing is recorded.

    What :func:`attention_sdpa` itself leads to is recorded by autograd, and needs no such call.
    """
    q, k, v, mask = _for_row_blocks(query, key, value, attn_mask, scale)
    wide = (None if g is None else g.to(q.dtype) for g in (grad_out, grad_lse, grad_entropy, grad_map))
    saved = (q, k, v, mask, out.to(q.dtype), entropy)
    needed = (needs[0] or needs[4], *needs[1:4])
    with _no_autocast(q.device.type):
        dq, dk, dv, dmask = row_gradients(saved, needed, is_causal, map_keys, *wide)
    dscale = None
    if needs[4]:
        dscale = (dq * query).sum((0, 2, 3)).sum_to_size(scale.shape).to(scale.dtype)
    if dq is not None:
        dq = (dq * softmax_scale(scale, query)).to(query.dtype) if needs[0] else None
    dk, dv = (None if t is None else _sum_of_groups(t, of.shape[1]).to(of.dtype) for t, of in ((dk, key), (dv, value)))
    return dq, dk, dv, None if dmask is None else dmask.view(attn_mask.shape).to(attn_mask.dtype), dscale


def _for_row_blocks(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float | Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """At least float32, a key head for every query head, the scale in the query, the mask with four dimensions."""
    compute_dtype = _dtype_for(attn_mask, torch.promote_types(query.dtype, torch.float32))
    q, k, v = (t.to(compute_dtype) for t in (query, key, value))
    k, v = (t if t.shape[1] == q.shape[1] else t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    q = q * softmax_scale(scale, q)
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    return q.to(compute_dtype), k, v, attn_mask


def _dtype_for(attn_mask: Tensor | None, dtype: torch.dtype) -> torch.dtype:
    """One that holds every value of the mask: rounded to a narrower one, float32's -1e5 would be -inf in float16."""
    if attn_mask is None or attn_mask.dtype == torch.bool:
        return dtype
    return torch.promote_types(dtype, attn_mask.dtype)


def _sum_of_groups(t: Tensor, heads: int) -> Tensor:
    """What grouped heads add up to, for (B, heads * group, N, D)."""
    return t if t.shape[1] == heads else t.unflatten(1, (heads, -1)).sum(2)


def _no_autocast(device_type: str) -> AbstractContextManager:
    """Keeps an autocast region from narrowing the products of the statistics."""
    return torch.autocast(device_type, enabled=False) if has_autocast(device_type) else nullcontext()


@constant_in_graphs  # older torch cannot trace the question
def has_autocast(device_type: str) -> bool:
    """Whether torch.autocast knows the device; "meta" it does not."""
    return torch._C._is_autocast_available(device_type)


def torch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` for any scale, and a mask of any floating dtype and rank.

    Where the mask's dtype holds values that the query's does not, all is computed in the wider one.
    """
    if isinstance(scale, Tensor):
        wide = torch.promote_types(query.dtype, torch.float32)  # one rounding, of the product
        query, scale = (query.to(wide) * softmax_scale(scale, query)).to(query.dtype), 1.0
    elif scale is not None and scale <= 0:
        # torch multiplies the causal -inf by the scale (NaN at 0, +inf below it), so the sign moves into the query
        query, scale = (query * 0.0, 1.0) if scale == 0 else (-query, -scale)
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if attn_mask is None or attn_mask.is_nested:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    if attn_mask.dim() < 2:  # torch asks for two dimensions
        attn_mask = attn_mask[(None,) * (2 - attn_mask.dim())]
    wide = _dtype_for(attn_mask, query.dtype) if attn_mask.is_floating_point() else query.dtype
    if wide == query.dtype:
        attn_mask = attn_mask.to(wide) if attn_mask.is_floating_point() else attn_mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    with _no_autocast(query.device.type):  # which would narrow the mask
        tensors = (t.to(wide) for t in (query, key, value, attn_mask))
        return F.scaled_dot_product_attention(*tensors, **options).to(query.dtype)
