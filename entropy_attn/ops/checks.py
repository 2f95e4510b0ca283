"""Argument checks of the public calls: every refusal names the argument, the value and what is allowed."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | Tensor | None,
    enable_gqa: bool,
) -> None:
    """Raise TypeError or ValueError unless ``attention`` has a meaning for these arguments."""
    _check_tensors(query, key, value)
    _check_shapes(query, key, value, enable_gqa)
    check_scale(scale, query)
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal must be a bool, got {type(is_causal).__name__}")
    if attn_mask is not None:
        if is_causal:
            raise ValueError("attn_mask and is_causal=True exclude each other: put the causal part into attn_mask")
        _check_mask(attn_mask, query, (*query.shape[:3], key.shape[2]))


def check_scale(scale: float | Tensor | None, query: Tensor) -> None:
    """A scale is None, a finite number, a 0-d tensor or an (H,) tensor."""
    if scale is None:
        return
    if isinstance(scale, Tensor):
        heads = query.shape[-3] if query.dim() > 2 else None
        if not scale.is_floating_point():
            raise TypeError(f"scale must be a floating-point tensor, got {scale.dtype}")
        if scale.dim() > 0 and tuple(scale.shape) != (heads,):
            per_head = "" if heads is None else f", or a tensor of shape ({heads},) with one factor a query head"
            raise ValueError(f"scale must be a number or a 0-d tensor{per_head}; got shape {tuple(scale.shape)}")
        if scale.dim() > 0 and scale.device != query.device:
            raise ValueError(f"scale is on {scale.device}, query on {query.device}: they must share a device")
    elif isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale must be None, a number or a tensor, got {type(scale).__name__}")
    elif not torch.compiler.is_compiling():  # a traced number is not known yet
        check_finite(scale)


def check_finite(scale: Real) -> Real:
    """The scale, if it is a number that a float can be."""
    try:
        finite = math.isfinite(scale)
    except OverflowError:  # an int beyond the largest float
        finite = False
    if not finite:
        raise ValueError(f"scale must be finite, got {scale}")
    return scale


def check_map_keys(map_keys: tuple[int, int] | slice | None, seqlen_k: int) -> tuple[int, int] | None:
    """The range as ``0 <= start < stop <= seqlen_k``. Unlike a slice of a list, it is never cut to what is there."""
    if map_keys is None:
        return None
    if isinstance(map_keys, slice):
        if map_keys.step not in (None, 1):
            raise ValueError(f"map_keys must be contiguous, got a slice with step {map_keys.step}")
        bounds = map_keys.start, map_keys.stop
    elif isinstance(map_keys, tuple) and len(map_keys) == 2:
        bounds = map_keys
    else:
        raise TypeError(f"map_keys must be None, (start, stop) or a slice, got {map_keys!r}")
    for bound in bounds:
        if type(bound) is int or bound is None:  # to ask whether it is Integral takes the host longer
            continue
        if isinstance(bound, bool) or not isinstance(bound, Integral):
            raise TypeError(f"map_keys must have integer bounds, got {map_keys!r}")
    start = 0 if bounds[0] is None else int(bounds[0]) + (seqlen_k if bounds[0] < 0 else 0)
    stop = seqlen_k if bounds[1] is None else int(bounds[1]) + (seqlen_k if bounds[1] < 0 else 0)
    if not 0 <= start < stop <= seqlen_k:
        raise ValueError(
            f"map_keys must name at least one key and none beyond the {seqlen_k} there are, got {map_keys!r}"
        )
    return start, stop


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    named = {"query": query, "key": key, "value": value}
    for name, t in named.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
    for name, t in named.items():
        if t.dtype != query.dtype:
            raise TypeError(f"{name} is {t.dtype}, query {query.dtype}: query, key and value must share a dtype")
        if t.device != query.device:
            raise ValueError(f"{name} is on {t.device}, query on {query.device}: all tensors must share a device")
        if t.dim() != 4:
            raise ValueError(f"{name} must be 4-D (batch, heads, tokens, head_dim), got shape {tuple(t.shape)}")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    q, k, v = query.shape, key.shape, value.shape
    if not isinstance(enable_gqa, bool):
        raise TypeError(f"enable_gqa must be a bool, got {type(enable_gqa).__name__}")
    if not q[0] == k[0] == v[0]:
        raise ValueError(f"query, key and value must share the batch size, got {q[0]}, {k[0]} and {v[0]}")
    for name, heads in (("key", k[1]), ("value", v[1])):
        if q[1] != heads and not enable_gqa:
            raise ValueError(f"query has {q[1]} heads and {name} {heads}: they must be equal, or pass enable_gqa=True")
        if enable_gqa and (heads == 0 or q[1] % heads):
            raise ValueError(f"enable_gqa=True needs query heads divisible by {name} heads, got {q[1]} and {heads}")
    if k[2] != v[2]:
        raise ValueError(f"key and value must have the same number of tokens, got {k[2]} and {v[2]}")
    if q[3] != k[3]:
        raise ValueError(f"query and key must have the same head_dim, got {q[3]} and {k[3]}")
    if q[3] == 0:
        raise ValueError("query has head_dim 0; it must be at least 1")


def _check_mask(attn_mask: Tensor, query: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask must be None or a tensor, got {type(attn_mask).__name__}")
    if attn_mask.dtype != torch.bool and attn_mask.dtype not in DTYPES:
        raise TypeError(f"attn_mask must be boolean (True = attend) or floating-point (added), got {attn_mask.dtype}")
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}, query on {query.device}: they must share a device")
    sizes = zip(reversed(attn_mask.shape), reversed(shape), strict=False)
    if attn_mask.dim() > 4 or not all(have in (1, want) for have, want in sizes):
        raise ValueError(
            f"attn_mask must broadcast to (batch, heads, queries, keys) = {shape}, got shape {tuple(attn_mask.shape)}"
        )
