"""Argument checks of the public calls: every error names the argument, what is expected and what it got."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..kernels.common.call import AttentionCall
from .autocast import as_autocast
from .tensor_kinds import is_plain, traced

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROW_STATISTICS = frozenset(("variance", "max", "mass"))  # besides those with a flag of their own
_STATISTICS = ("lse", "entropy", "variance", "max", "mass")


def checked_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | Tensor | None,
    enable_gqa: bool,
    return_lse: bool,
    return_entropy: bool,
    map_keys: tuple[int, int] | slice | None,
) -> AttentionCall:
    """The call that these arguments describe, cast like torch's attention inside an autocast region.

    Raises:
        TypeError, ValueError: an argument has no meaning here.
    """
    query, key, value = as_autocast(query, key, value)
    check_attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    if scale is not None:
        scale = _plain_scale(scale, query)
    if map_keys is not None:
        map_keys = check_map_keys(map_keys, key.shape[2])
    return AttentionCall(query, key, value, attn_mask, is_causal, scale, return_lse, return_entropy, map_keys)


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | Tensor | None,
    enable_gqa: bool,
) -> None:
    """Raise TypeError or ValueError unless `attention` has a meaning for these arguments."""
    _check_tensors(query, key, value)
    _check_shapes(query, key, value, enable_gqa)
    check_scale(scale, query)
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal: expected a bool, got {type(is_causal).__name__}")
    if attn_mask is not None:
        if is_causal:
            raise ValueError(
                "attn_mask: expected None with is_causal=True, got a tensor; put the causal part into attn_mask"
            )
        _check_mask(attn_mask, query, (*query.shape[:3], key.shape[2]))


def check_scale(scale: float | Tensor | None, query: Tensor) -> None:
    """A scale is None, a finite number, a 0-d tensor, an (H,) tensor, or one that broadcasts to (B, H)."""
    if scale is None:
        return
    if isinstance(scale, Tensor):
        if not scale.is_floating_point():
            raise TypeError(f"scale: expected a floating-point tensor, got {scale.dtype}")
        if scale.ndim > 0 and not _is_per_head(scale, query):
            _refuse_shape_of_scale(scale, query)
        if scale.ndim > 0 and scale.device != query.device:
            raise ValueError(f"scale: expected the query's device {query.device}, got {scale.device}")
    elif type(scale) is not float and (isinstance(scale, bool) or not isinstance(scale, Real)):
        raise TypeError(f"scale: expected None, a number or a tensor, got {type(scale).__name__}")
    elif not torch.compiler.is_compiling():  # a traced number is not known yet
        check_finite(scale)


def _is_per_head(scale: Tensor, query: Tensor) -> bool:
    """Whether it has a factor for every head, or for every sample and head; the latter may broadcast."""
    if scale.ndim == 1:
        return query.ndim > 2 and scale.shape[0] == query.shape[-3]
    sizes = zip(scale.shape, query.shape, strict=False)
    return scale.ndim == 2 and query.ndim == 4 and all(have in (1, want) for have, want in sizes)


def _refuse_shape_of_scale(scale: Tensor, query: Tensor) -> None:
    allowed = ["a number", "a 0-d tensor"]
    if query.ndim > 2:
        allowed.append(f"a tensor of shape ({query.shape[-3]},) with one factor per query head")
    if query.ndim == 4:
        allowed.append(f"one that broadcasts to (batch, heads) = {tuple(query.shape[:2])}")
    what = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
    raise ValueError(f"scale: expected {what}, got shape {tuple(scale.shape)}")


def check_finite(scale: float) -> float:
    """The scale, if it is a number that a float can be."""
    try:
        finite = math.isfinite(scale)
    except OverflowError:  # an int beyond the largest float
        finite = False
    if not finite:
        raise ValueError(f"scale: expected a finite number, got {scale}")
    return scale


def asked_statistics(statistics: Any, mass_keys: object) -> frozenset[str]:
    """The names in `statistics`, checked; "mass" goes with `mass_keys`."""
    what = f"a tuple of names among {', '.join(map(repr, _STATISTICS))}"
    if isinstance(statistics, (str, bytes)) or not isinstance(statistics, (tuple, list, set, frozenset)):
        raise TypeError(f"statistics: expected {what}, got {statistics!r}")
    for name in statistics:
        if name not in _STATISTICS:
            raise ValueError(f"statistics: expected {what}, got {name!r} among them")
    if ("mass" in statistics) != (mass_keys is not None):
        wanted = "a range of keys with" if "mass" in statistics else "None without"
        raise ValueError(f"mass_keys: expected {wanted} the statistic 'mass', got {mass_keys!r}")
    return frozenset(statistics)


def check_map_keys(map_keys: tuple[int, int] | slice, seqlen_k: int) -> tuple[int, int]:
    """The range with 0 <= start < stop <= seqlen_k. Unlike the slice of a list, it is never cut to the length."""
    return check_range("map_keys", map_keys, seqlen_k, "None, (start, stop) or a slice")


def check_range(name: str, given: Any, length: int, what: str) -> tuple[int, int]:
    """A range with 0 <= start < stop <= length, never cut to the length; `what` says which types are allowed."""
    if isinstance(given, slice):
        if given.step not in (None, 1):
            raise ValueError(f"{name}: expected a slice with step 1, got {given!r}")
        bounds = given.start, given.stop
    elif isinstance(given, tuple) and len(given) == 2:
        bounds = given
    else:
        raise TypeError(f"{name}: expected {what}, got {given!r}")
    for bound in bounds:
        if type(bound) is int or bound is None:  # isinstance(bound, Integral) takes the host longer
            continue
        if isinstance(bound, bool) or not isinstance(bound, Integral):
            raise TypeError(f"{name}: expected integer bounds, got {given!r}")
    start = 0 if bounds[0] is None else int(bounds[0]) + (length if bounds[0] < 0 else 0)
    stop = length if bounds[1] is None else int(bounds[1]) + (length if bounds[1] < 0 else 0)
    if not 0 <= start < stop <= length:
        raise ValueError(f"{name}: expected 0 <= start < stop <= {length}, got {given!r}")
    return start, stop


def _plain_scale(scale: Any, query: Tensor) -> float | Tensor:
    """A number (NumPy's too) as a float; a 0-d tensor on the query's device, or as a float if that needs no waiting."""
    if type(scale) is float or isinstance(scale, Real):
        return float(scale)
    if scale.device.type == "cpu" and not torch.compiler.is_compiling() and is_plain(scale) and not traced():
        if scale.ndim == 0 and not scale.requires_grad:
            return check_finite(scale.item())
        if not scale.detach().isfinite().all():  # of a scale on another device, the host would have to wait for it
            raise ValueError(f"scale: expected finite numbers, got {scale.tolist()}")
    if scale.ndim == 0 and (scale.requires_grad or scale.device.type != "cpu"):
        return scale.to(query.device)
    return scale


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    named = (("query", query), ("key", key), ("value", value))
    for name, t in named:
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
        if t.dtype not in DTYPES:
            raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {t.dtype}")
    for name, t in named:
        if t.dtype != query.dtype:
            raise TypeError(f"{name}: expected the query's dtype {query.dtype}, got {t.dtype}")
        if t.device != query.device:
            raise ValueError(f"{name}: expected the query's device {query.device}, got {t.device}")
        if t.ndim != 4:
            raise ValueError(f"{name}: expected shape (batch, heads, tokens, head_dim), got {tuple(t.shape)}")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    q, k, v = query.shape, key.shape, value.shape
    if not isinstance(enable_gqa, bool):
        raise TypeError(f"enable_gqa: expected a bool, got {type(enable_gqa).__name__}")
    if not q[0] == k[0] == v[0]:
        raise ValueError(f"query, key, value: expected one batch size, got {q[0]}, {k[0]} and {v[0]}")
    for name, heads in (("key", k[1]), ("value", v[1])):
        if q[1] != heads and not enable_gqa:
            raise ValueError(f"{name}: expected the query's {q[1]} heads, got {heads}; or pass enable_gqa=True")
        if enable_gqa and (heads == 0 or q[1] % heads):
            raise ValueError(f"{name}: expected a number of heads that divides the query's {q[1]}, got {heads}")
    if k[2] != v[2]:
        raise ValueError(f"value: expected the key's {k[2]} tokens, got {v[2]}")
    if q[3] != k[3]:
        raise ValueError(f"key: expected the query's head_dim {q[3]}, got {k[3]}")
    if q[3] == 0:
        raise ValueError("query: expected a head_dim of at least 1, got 0")


def _check_mask(attn_mask: Tensor, query: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask: expected None or a tensor, got {type(attn_mask).__name__}")
    if attn_mask.dtype != torch.bool and attn_mask.dtype not in DTYPES:
        raise TypeError(
            f"attn_mask: expected a boolean (True = attend) or floating-point (added) dtype, got {attn_mask.dtype}"
        )
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask: expected the query's device {query.device}, got {attn_mask.device}")
    if attn_mask.shape == shape[4 - attn_mask.ndim :]:  # nothing broadcasts, or only whole dimensions
        return
    sizes = zip(reversed(attn_mask.shape), reversed(shape), strict=False)
    if attn_mask.ndim > 4 or not all(have in (1, want) for have, want in sizes):
        raise ValueError(
            f"attn_mask: expected a shape that broadcasts to (batch, heads, queries, keys) = {shape}, "
            f"got {tuple(attn_mask.shape)}"
        )
