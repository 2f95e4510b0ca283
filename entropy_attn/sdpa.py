"""Attention from torch's own operations: one fused call without statistics, exact row blocks with them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.reference import softmax_scale
from entropy_attn.row_blocks import attention_row_blocks


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

    compute_dtype = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (t.to(compute_dtype) for t in (query, key, value))
    if enable_gqa:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    q = q * softmax_scale(scale, q)
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    with _no_autocast(q.device.type):
        out, lse, entropy, head_mean = attention_row_blocks(
            q.to(compute_dtype), k, v, attn_mask, is_causal, return_entropy=return_entropy, map_keys=map_keys
        )
    return out.to(query.dtype), lse if return_lse else None, entropy, head_mean


def _no_autocast(device_type: str) -> AbstractContextManager:
    """Keeps an autocast region from narrowing the products of the statistics."""
    known = torch.amp.is_autocast_available(device_type)  # "meta" is not
    return torch.autocast(device_type, enabled=False) if known else nullcontext()


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
    """``torch.nn.functional.scaled_dot_product_attention`` for any scale: tensors, zero and negative numbers too."""
    if isinstance(scale, Tensor):
        wide = torch.promote_types(query.dtype, torch.float32)  # one rounding, of the product
        query, scale = (query.to(wide) * softmax_scale(scale, query)).to(query.dtype), 1.0
    elif scale is not None and scale <= 0:
        # torch multiplies the causal -inf by the scale (NaN at 0, +inf below it), so the sign moves into the query
        query, scale = (query * 0.0, 1.0) if scale == 0 else (-query, -scale)
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        attn_mask = attn_mask.to(query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
