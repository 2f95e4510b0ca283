"""Attention from torch's operations: one fused call without statistics; exact blocks of rows with them.

Where a backward pass may follow on a CPU, small probabilities are kept for it (`kept.py`); others are computed again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.common.call import AllResults, AttentionCall, Results
from .autocast import no_autocast
from .kept import attention_kept, keeps_probabilities
from .key_groups import run_by_group
from .reference import softmax_scale
from .row_blocks import NO_STATISTICS, RowStatistics, attention_row_blocks, row_gradients


def attention_sdpa(call: AttentionCall) -> Results:
    """Differentiable in every floating-point input; None for what the call does not ask for."""
    if not call.statistics:
        out = torch_attention(
            call.query,
            call.key,
            call.value,
            attn_mask=call.attn_mask,
            is_causal=call.is_causal,
            scale=call.scale,
            enable_gqa=call.grouped,
        )
        return out, None, None, None

    q, k, v, scale = _for_row_blocks(call)
    if not (call.is_causal or call.return_lse) and keeps_probabilities(q, k, v, call.mask):
        with no_autocast(q.device.type):
            out, entropy, head_mean = attention_kept(q, k, v, call.mask, scale, call.return_entropy, call.map_keys)
        return _as_returned(AllResults(out, None, entropy, head_mean), call)[:4]
    return _by_row_blocks(call, q, k, v, scale)[:4]


def attention_sdpa_all(call: AttentionCall) -> AllResults:
    """The same for calls with key groups, or with the statistics of `AttentionCall.row_statistics`."""
    if call.key_groups:
        return run_by_group(call, attention_sdpa_all)
    # A bias of the keys is a mask. Torch's attention takes none beside causality, and for the gradient of one it holds
    # the matrix of scores.
    mask = call.attn_mask
    if call.row_statistics or (mask is not None and (call.is_causal or (mask.requires_grad and call.needs_gradient))):
        return _by_row_blocks(call, *_for_row_blocks(call))
    return AllResults(*attention_sdpa(call))


def _by_row_blocks(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, scale: float) -> AllResults:
    rows = NO_STATISTICS
    if call.row_statistics:
        rows = RowStatistics(call.return_variance, call.return_max, call.mass_keys)
    with no_autocast(q.device.type):
        results = attention_row_blocks(
            q, k, v, call.mask, call.is_causal, scale, return_lse=call.return_lse,
            return_entropy=call.return_entropy, map_keys=call.map_keys, rows=rows,
        )  # fmt: skip
    return _as_returned(results, call)


def _as_returned(results: AllResults, call: AttentionCall) -> AllResults:
    """The output in the query's dtype, statistics in float32, or float64 for float64 queries."""
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    out, *statistics = results
    return AllResults(out.to(call.query.dtype), *(None if t is None else t.to(dtype) for t in statistics))


def attention_sdpa_backward(
    call: AttentionCall,
    _results: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, attn_mask and scale, None where not needed, for use where nothing is recorded.

    `grads` are the gradients of out, lse, entropy and map; everything else is computed again. Autograd records what
    `attention_sdpa` does, so that its callers need no such function.
    """
    query, key, value, scale = call.query, call.key, call.value, call.scale
    q, k, v, factor = _for_row_blocks(call)
    wide = (None if g is None else g.to(q.dtype) for g in grads)
    saved = (q, k, v, call.mask)
    needed = (needs[0] or needs[4], *needs[1:4])
    with no_autocast(q.device.type):
        dq, dk, dv, dmask = row_gradients(saved, needed, call.is_causal, factor, call.map_keys, *wide)
    dscale = None
    if isinstance(scale, Tensor) and needs[4] and dq is not None:
        dscale = (dq * query).sum((2, 3)).sum_to_size(scale.shape).to(scale.dtype)
    if dq is not None:
        dq = (dq * (softmax_scale(scale, query) / factor)).to(query.dtype) if needs[0] else None
    dk, dv = (None if t is None else _sum_of_groups(t, of.shape[1]).to(of.dtype) for t, of in ((dk, key), (dv, value)))
    if dmask is not None and call.attn_mask is not None:
        dmask = dmask.view(call.attn_mask.shape).to(call.attn_mask.dtype)
    return dq, dk, dv, dmask, dscale


def _for_row_blocks(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor, float]:
    """At least float32, a key head for every query head, and the scale: 1 if it is in the query."""
    compute_dtype = _dtype_for(call.attn_mask, torch.promote_types(call.query.dtype, torch.float32))
    q, k, v = (t.to(compute_dtype) for t in (call.query, call.key, call.value))
    k, v = (t if t.shape[1] == q.shape[1] else t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scale = softmax_scale(call.scale, q)
    if isinstance(scale, Tensor) or scale == 0.0:  # a product with the factor 0 would hide NaN
        return (q * scale).to(compute_dtype), k, v, 1.0
    return q, k, v, float(scale)


def _dtype_for(attn_mask: Tensor | None, dtype: torch.dtype) -> torch.dtype:
    """One that holds every value of the mask: rounded to a narrower one, float32's -1e5 would be -inf in float16."""
    if attn_mask is None or attn_mask.dtype == torch.bool:
        return dtype
    return torch.promote_types(dtype, attn_mask.dtype)


def _sum_of_groups(t: Tensor, heads: int) -> Tensor:
    """(B, heads * group, N, D) summed over each group of heads."""
    return t if t.shape[1] == heads else t.unflatten(1, (heads, -1)).sum(2)


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
    """`torch.nn.functional.scaled_dot_product_attention` for any scale, and a mask of any floating dtype and rank.

    Where the mask's dtype holds values that the query's does not, everything is computed in the wider one.
    """
    if isinstance(scale, Tensor):
        wide = torch.promote_types(query.dtype, torch.float32)  # one rounding, of the product
        query, scale = (query.to(wide) * softmax_scale(scale, query)).to(query.dtype), 1.0
    elif scale is not None and scale <= 0:
        # torch multiplies the causal -inf by the scale (NaN at 0, +inf below it), so the sign moves into the query
        query, scale = (query * 0.0, 1.0) if scale == 0 else (-query, -scale)
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if attn_mask is None or attn_mask.is_nested:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    if attn_mask.dim() < 2:  # torch needs two dimensions
        attn_mask = attn_mask[(None,) * (2 - attn_mask.dim())]
    wide = _dtype_for(attn_mask, query.dtype) if attn_mask.is_floating_point() else query.dtype
    if wide == query.dtype:
        attn_mask = attn_mask.to(wide) if attn_mask.is_floating_point() else attn_mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    with no_autocast(query.device.type):  # which would narrow the mask
        q, k, v, mask = (t.to(wide) for t in (query, key, value, attn_mask))
        return F.scaled_dot_product_attention(q, k, v, mask, **options).to(query.dtype)
