"""How attention answers a temperature: the change of its entropy with the scale, and the spread of its logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .api import attention
from .autocast import no_autocast
from .reference import softmax_scale

STEP = 0.02  # half the distance of the two scales, in ln(scale); benchmarks/results/response.csv has the errors
BLOCK_SCORES = 1 << 25  # of the logits that are held at once, where a mask differs between rows


@torch.no_grad()
def response_and_variance(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(B, H, Nq, 2): `entropy_response` and `logit_variance` of one call, without a graph.

    The arguments have the same meanings as those of `attention`.
    """
    response = entropy_response(
        query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    variance = logit_variance(query, key, attn_mask=attn_mask, is_causal=is_causal, scale=scale)
    return torch.stack([response, variance.to(response.dtype)], dim=-1)


def entropy_response(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
    step: float = STEP,
    impl: str = "auto",
) -> Tensor:
    """-dH / d ln(scale) of every row, by two calls of `attention` at nearby scales.

    With p = softmax(s * x) and H = ln sum_j exp(s x_j) - s sum_j p_j x_j, the derivative dH / d ln s is
    -Var_p(s x), the variance of the logits under the row's softmax. With a mask that adds to the logits it is the
    covariance of s x and the logits. The central difference is off by step**2 / 6 of the third derivative.

    Args:
        query: (B, H, Nq, D); the arguments have the same meanings as those of `attention`.
        key: (B, Hkv, Nk, D).
        value: (B, Hkv, Nk, Dv), which the result does not depend on.
        attn_mask: broadcasts to (B, H, Nq, Nk).
        is_causal: query i attends keys 0 to i.
        scale: None (1/sqrt(D)), a number, or a tensor (), (H,) or (B, H).
        enable_gqa: allow fewer heads of key and value than of query.
        step: the scales are scale * exp(-step) and scale * exp(step).
        impl: as for `attention`.

    Returns:
        (B, H, Nq) in nats, float32, or float64 for float64 queries.
    """
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "enable_gqa": enable_gqa, "impl": impl}
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    flatter, sharper = (
        attention(query, key, value, scale=scale * math.exp(by), return_entropy=True, **options).entropy
        for by in (-step, step)
    )
    assert flatter is not None and sharper is not None
    return (flatter - sharper) / (2 * step)


def logit_variance(
    query: Tensor,
    key: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
) -> Tensor:
    """The (population) variance of the logits of every row over the keys that it may attend, each with weight 1.

    For a mask that all rows share it is q^T C q with C the covariance of the keys: O(Nk D^2 + Nq D^2), not O(Nq Nk D).

    Args:
        query: (B, H, Nq, D).
        key: (B, Hkv, Nk, D), with H a multiple of Hkv.
        attn_mask: broadcasts to (B, H, Nq, Nk). What a floating-point mask adds is part of the logits; a key is left
            out where the mask is False, or so low that its weight is 0 in float32 beside the row's largest.
        is_causal: query i attends keys 0 to i.
        scale: None (1/sqrt(D)), a number, or a tensor (), (H,) or (B, H).

    Returns:
        (B, H, Nq), float32, or float64 for float64 queries; 0 for a row without keys.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    query = query * softmax_scale(scale, query)
    by_row = is_causal or (attn_mask is not None and attn_mask.dim() >= 2 and attn_mask.shape[-2] != 1)
    with no_autocast(query.device.type):
        return _of_rows(query, key, attn_mask, is_causal) if by_row else _of_shared_keys(query, key, attn_mask)


def _of_shared_keys(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """With one more channel for what the mask adds: 1 in the query, the mask's value in the key."""
    batch, heads, _, _ = query.shape
    keys = key.repeat_interleave(heads // key.shape[1], dim=1)
    if mask is None:
        centered = keys - keys.mean(dim=-2, keepdim=True)
        covariance = centered.mT @ centered / keys.shape[-2]
    else:
        weights, added = _allowed(mask, query.dtype)
        weights, added = (t.expand(batch, heads, 1, keys.shape[-2]).mT for t in (weights, added))
        keys = torch.cat([keys, added], dim=-1)
        query = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)
        weights = weights / weights.sum(dim=-2, keepdim=True).clamp(min=1.0)
        centered = keys - (weights * keys).sum(dim=-2, keepdim=True)
        covariance = (weights * centered).mT @ centered
    return ((query @ covariance) * query).sum(dim=-1).clamp(min=0.0)


def _of_rows(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """By the logits, a block of rows at a time."""
    (batch, heads, rows, _), keys = query.shape, key.shape[-2]
    key = key.repeat_interleave(heads // key.shape[1], dim=1)
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], rows, keys)
    block = max(1, BLOCK_SCORES // (batch * heads * keys))
    found = []
    for start in range(0, rows, block):
        part = slice(start, start + block)
        logits = query[..., part, :] @ key.mT
        weights = torch.ones_like(logits)
        if mask is not None:
            weights, added = _allowed(mask[..., part, :], query.dtype)
            logits = logits + added
        if is_causal:
            weights = weights * torch.ones(rows, keys, dtype=query.dtype, device=query.device).tril()[part]
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1.0)
        mean = (weights * logits).sum(dim=-1, keepdim=True)
        found.append((weights * (logits - mean).square()).sum(dim=-1))
    return torch.cat(found, dim=-1)


def _allowed(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(1 or 0 for every key, what is added to its logit); keys that are left out have 0 in both."""
    if mask.dtype == torch.bool:
        return mask.to(dtype), torch.zeros_like(mask, dtype=dtype)
    mask = mask.to(dtype)
    allowed = mask > mask.amax(dim=-1, keepdim=True) + math.log(torch.finfo(torch.float32).tiny)
    return allowed.to(dtype), mask.masked_fill(~allowed, 0.0)
