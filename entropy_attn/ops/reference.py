"""The oracle: attention with all of its statistics, written to be read. It holds the whole (Nq, Nk) matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels.common.call import AllResults, AttentionCall


def softmax_scale(scale: float | Tensor | None, query: Tensor) -> float | Tensor:
    """The factor on QKᵀ: 1/sqrt(head_dim) for None, an (H,) or (B, H) tensor shaped to broadcast over the scores."""
    if scale is None:
        return 1.0 / math.sqrt(query.shape[-1])
    if isinstance(scale, Tensor) and scale.dim():
        return scale[..., None, None]
    return scale


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
    map_keys: tuple[int, int] | None = None,
    compute_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Out, lse, entropy and map in `compute_dtype`, from q (B, H, Nq, D), k (B, Hkv, Nk, D), v (B, Hkv, Nk, Dv).

    The map, (B, Nq, stop - start), is the mean over heads of the probabilities of the keys start <= j < stop; None
    without `map_keys`. A row without keys to attend has out 0, lse -inf, entropy 0, map 0 and no gradient. Every step
    is a plain differentiable operation, so autograd is the reference for gradients too.
    """
    call = AttentionCall(query, key, value, attn_mask, is_causal, scale, map_keys=map_keys)
    results = all_results(call, enable_gqa=enable_gqa, compute_dtype=compute_dtype)
    assert results.lse is not None and results.entropy is not None
    return results.out, results.lse, results.entropy, results.map


def all_results(
    call: AttentionCall, *, enable_gqa: bool = False, compute_dtype: torch.dtype = torch.float64
) -> AllResults:
    """Everything that a call can return, in `compute_dtype`; map and mass where it has their keys.

    A row without keys to attend has variance 0, maximum -inf and mass 0.
    """
    query, key, value, attn_mask, scale = call.query, call.key, call.value, call.attn_mask, call.scale
    q, k, v = (t.to(compute_dtype) for t in (query, key, value))
    if enable_gqa:  # numbers of key and value heads may differ
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    sm_scale = softmax_scale(scale, q)
    if isinstance(sm_scale, Tensor):
        sm_scale = sm_scale.to(compute_dtype)

    s = (q @ k.mT) * sm_scale  # [B, H, Nq, Nk]
    if call.key_scale is not None:
        s = s * by_query(call.key_scale.to(compute_dtype), call.key_rows, s.shape[2], 1.0)
    if call.key_bias is not None:
        bias = by_query(call.key_bias.to(compute_dtype), call.key_rows, s.shape[2], 0.0)
        s = (s + bias).masked_fill(bias == -math.inf, -math.inf)
    if attn_mask is not None:  # it excludes a key whatever the score is, NaN too
        if attn_mask.dtype != torch.bool:
            s = s + attn_mask.to(compute_dtype)
        s = s.masked_fill(~attn_mask if attn_mask.dtype == torch.bool else attn_mask == -math.inf, -math.inf)
    if call.is_causal:  # aligned to the top left: query i attends keys 0..i
        keep = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril()
        s = s.masked_fill(~keep, -math.inf)

    # Only finite scores enter the arithmetic below: -inf - -inf and 0 * -inf are NaN, in values and in gradients.
    broken = (s.isnan() | (s == math.inf)).any(dim=-1, keepdim=True)  # such a row is NaN throughout
    masked = (s == -math.inf) & ~broken
    empty = masked.all(dim=-1, keepdim=True)  # [B, H, Nq, 1]; also true for Nk = 0
    m = s.detach().amax(dim=-1, keepdim=True) if s.shape[-1] else s.new_zeros(empty.shape)
    x = (s.masked_fill(masked, 0.0) - m.masked_fill(empty, 0.0)).masked_fill(masked, 0.0)
    p = x.exp().masked_fill(masked, 0.0)
    log_l = p.sum(dim=-1, keepdim=True).masked_fill(empty, 1.0).log()
    log_p = x - log_l
    p = log_p.exp().masked_fill(masked, 0.0)

    out = p @ v
    lse = (m.masked_fill(empty, 0.0) + log_l).masked_fill(empty, -math.inf)
    entropy = 0.0 - (p * log_p).sum(dim=-1)  # not -(...): a one-hot row has 0.0, never -0.0
    head_mean = None if call.map_keys is None else p[..., slice(*call.map_keys)].mean(dim=1)
    mean = (p * x).sum(dim=-1, keepdim=True)
    variance = (p * (x - mean).square()).sum(dim=-1)
    highest = s.amax(dim=-1) if s.shape[-1] else s.new_full(s.shape[:-1], -math.inf)
    highest = highest.masked_fill(broken.squeeze(-1), math.nan)
    mass = None if call.mass_keys is None else p[..., slice(*call.mass_keys)].sum(dim=-1)
    return AllResults(out, lse.squeeze(-1), entropy, head_mean, variance, highest, mass)


def by_query(table: Tensor, rows: tuple[int, int] | Tensor | None, seqlen_q: int, neutral: float) -> Tensor:
    """A table (B|1, H|1, groups, Nk) of `AttentionCall` as values (B|1, H|1, Nq|1, Nk) of every query."""
    if rows is None:
        return table
    if isinstance(rows, Tensor):
        return table[:, :, rows.to(table.device)]
    row = torch.arange(seqlen_q, device=table.device)[:, None]
    return torch.where((row >= rows[0]) & (row < rows[1]), table, neutral)
