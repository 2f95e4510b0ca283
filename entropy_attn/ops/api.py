"""The public calls: argument checks, the choice of an implementation, and nothing else."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.errors import Unsupported
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.ops.checks import check_attention, check_finite, check_map_keys, check_scale
from entropy_attn.ops.choice import may_choose, measured_choice
from entropy_attn.ops.operator import attention_operator
from entropy_attn.ops.reference import attention_reference
from entropy_attn.ops.sdpa import attention_sdpa, has_autocast, torch_attention
from entropy_attn.ops.tensor_kinds import (
    as_causal,
    is_plain,
    subclass_reasons,
    traced,
    transform_reasons,
    without_class,
)
from entropy_attn.validation import require_bool

IMPLS = ("auto", "triton", "sdpa", "reference")
TORCHS = ("auto", "sdpa")  # torch's own attention, where no statistics are asked for


class AttentionOutput(NamedTuple):
    """What :func:`attention` returns; a statistic that was not asked for is None."""

    out: Tensor  # (B, H, Nq, Dv), the query's dtype
    lse: Tensor | None  # (B, H, Nq) float32, natural logarithm; -inf for a row with no key to attend
    entropy: Tensor | None  # (B, H, Nq) float32, nats; 0 for a row with no key to attend
    map: Tensor | None  # (B, Nq, stop - start) float32, probabilities, mean over heads; 0 for a row with no key


def attention(
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
    map_keys: tuple[int, int] | slice | None = None,
    impl: str = "auto",
) -> AttentionOutput:
    """Softmax attention with a scale chosen per call, and on request its log-sum-exp, entropy and head-averaged map.

    Args:
        query: (B, H, Nq, D); key: (B, Hkv, Nk, D); value: (B, Hkv, Nk, Dv). Any strides; float16 to float64.
        attn_mask: broadcasts to (B, H, Nq, Nk), with 0 to 4 dimensions; boolean (True = attend), or of any
            floating-point dtype (added to the logits as it is, never rounded to the query's dtype; -inf excludes the
            key), or torch's ``CausalBias``.
        is_causal: query i attends keys 0..i, also where Nq != Nk. Excludes ``attn_mask``.
        scale: factor on QK^T. None is 1/sqrt(D); else any finite number, a 0-d tensor, or an (H,) tensor, one a head.
            Of a tensor on a GPU it is not checked, as that would wait for it: NaN there makes its heads NaN.
        enable_gqa: allow the heads of key and of value, which may differ, to be divisors of H; each key or value head
            then serves as many consecutive query heads.
        return_lse, return_entropy: fill ``lse``, ``entropy`` of the result (float64 where the query is float64).
        map_keys: ``(start, stop)`` or a slice of the keys; fills ``map`` with the probabilities of these keys, which
            are normalised over all keys and averaged over the heads. Negative numbers count from the end.
        impl: "triton" (the fused kernel), "sdpa" (torch's own operations), "reference" (float64, holds the whole
            matrix), or "auto". A name other than "auto" never falls back: it raises :class:`Unsupported`.

    A row with no key to attend has out 0, lse -inf, entropy 0, map 0 and no gradient. NaN in a row's logits makes its
    statistics NaN.

    Raises:
        TypeError, ValueError: an argument has no meaning here; the message names it, its value and what is allowed.
        Unsupported: ``impl`` cannot serve the call, or a tensor is of a kind that it cannot read: nested, a subclass
            with operations of its own, inside of a functorch transform. Without statistics torch's own attention
            serves what it can of these.
    """
    if impl not in IMPLS:  # asked here too: a call in order costs the host no function for it
        _check_impl(impl)
    if type(return_lse) is not bool or type(return_entropy) is not bool:
        require_bool("return_lse", return_lse)
        require_bool("return_entropy", return_entropy)
    statistics = return_lse or return_entropy or map_keys is not None
    if attn_mask is not None:
        attn_mask, is_causal = as_causal(attn_mask, is_causal, query, key)
    if not torch.compiler.is_compiling() and not is_plain(query, key, value, attn_mask, scale):
        reasons = _kind_reasons(impl, statistics, query, key, value, attn_mask, scale)
        if reasons and (statistics or impl not in TORCHS):
            raise Unsupported(impl, reasons)
        if reasons:
            given = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
            return AttentionOutput(_torch_or_refuse(query, key, value, given, reasons), None, None, None)
        query, key, value, attn_mask, scale = map(without_class, (query, key, value, attn_mask, scale))
    query, key, value = _autocast(query, key, value)
    check_attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    scale = _plain_scale(scale, query)
    given = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
    map_keys = check_map_keys(map_keys, key.shape[2])
    wanted = {"return_lse": return_lse, "return_entropy": return_entropy, "map_keys": map_keys}
    if impl == "auto":
        impl = _auto(query, key, value, given, wanted)
    else:
        reasons = _reasons(impl, query, key, value, given, wanted)
        if reasons:
            raise Unsupported(impl, reasons)

    if impl == "triton" or (impl == "sdpa" and statistics and torch.compiler.is_compiling()):
        result = attention_operator(query, key, value, **given, **wanted, impl=impl)
    elif impl == "sdpa":
        result = attention_sdpa(query, key, value, **given, **wanted, enable_gqa=enable_gqa)
    else:
        out, lse, entropy, head_mean = attention_reference(
            query, key, value, **given, enable_gqa=enable_gqa, map_keys=map_keys
        )
        stats_dtype = torch.promote_types(query.dtype, torch.float32)
        result = (
            out.to(query.dtype),
            lse.to(stats_dtype) if return_lse else None,
            entropy.to(stats_dtype) if return_entropy else None,
            None if head_mean is None else head_mean.to(stats_dtype),
        )
    return AttentionOutput(*result)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` with its signature, results and errors, for any scale.

    ``scale`` may also be zero or negative together with ``is_causal``, any 0-d tensor, or an (H,) tensor with one
    factor a head. Everything else is torch's to serve or to refuse, but where a measurement on this card says that the
    fused kernel is the faster.
    """
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if isinstance(scale, Tensor):
        if dropout_p == 0.0 and _is_plain(query, key, value, enable_gqa):
            return attention(query, key, value, **options).out
        query, key, value = _autocast(query, key, value)
        check_scale(scale, query)
        return torch_attention(query, key, value, dropout_p=dropout_p, **options)
    if isinstance(scale, Real) and not isinstance(scale, bool):
        options["scale"] = float(scale)  # NumPy's numbers too
        if scale <= 0:
            return torch_attention(query, key, value, dropout_p=dropout_p, **options)
    if dropout_p == 0.0 and isinstance(query, Tensor) and may_choose(query) and _measured(query, key, value, options):
        return attention(query, key, value, **options).out
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, **options)


def unsupported_reasons(
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
    map_keys: tuple[int, int] | slice | None = None,
    impl: str = "triton",
) -> list[str]:
    """Every reason why ``impl`` cannot serve this :func:`attention` call; empty where it can."""
    _check_impl(impl)
    require_bool("return_lse", return_lse)
    require_bool("return_entropy", return_entropy)
    if attn_mask is not None:
        attn_mask, is_causal = as_causal(attn_mask, is_causal, query, key)
    if not is_plain(query, key, value, attn_mask, scale):
        statistics = return_lse or return_entropy or map_keys is not None
        reasons = _kind_reasons(impl, statistics, query, key, value, attn_mask, scale)
        if reasons:
            return reasons if statistics or impl not in TORCHS else []
        query, key, value, attn_mask, scale = map(without_class, (query, key, value, attn_mask, scale))
    query, key, value = _autocast(query, key, value)
    check_attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    map_keys = check_map_keys(map_keys, key.shape[2])
    if impl == "auto":
        return []
    given = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": _plain_scale(scale, query)}
    wanted = {"return_lse": return_lse, "return_entropy": return_entropy, "map_keys": map_keys}
    return _reasons(impl, query, key, value, given, wanted)


def chosen_impl(query: Tensor, key: Tensor, value: Tensor, *, return_entropy: bool = False) -> str:
    """What ``impl="auto"`` takes for a call without a mask, with a scale that is a number."""
    given = {"attn_mask": None, "is_causal": False, "scale": None}
    wanted = {"return_lse": False, "return_entropy": return_entropy, "map_keys": None}
    return _auto(query, key, value, given, wanted)


def _reasons(impl: str, query: Tensor, key: Tensor, value: Tensor, given: dict, wanted: dict) -> list[str]:
    if impl == "triton":
        import entropy_attn.kernels.common.support as support

        return support.unsupported_reasons(AttentionCall(query, key, value, **given, **wanted))
    if impl == "reference" and query.device.type == "mps":
        return ["the reference computes in float64, which device mps does not have"]
    return []


def _check_impl(impl: str) -> None:
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}; got {impl!r}")


def _kind_reasons(impl: str, statistics: bool, *tensors: object) -> list[str]:
    """What speaks against tensors that are more than their memory; torch's own attention may know them all the same."""
    named = dict(zip(("query", "key", "value", "attn_mask", "scale"), tensors, strict=True))
    reasons = subclass_reasons(named)
    return reasons if impl == "reference" else reasons + transform_reasons(named)


def _torch_or_refuse(query: Tensor, key: Tensor, value: Tensor, given: dict, reasons: list[str]) -> Tensor:
    try:
        return torch_attention(query, key, value, **given)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:  # NotImplementedError is one
        raise Unsupported("sdpa", [*reasons, f"nor does torch's attention serve it: {error}"]) from error


def _auto(query: Tensor, key: Tensor, value: Tensor, given: dict, wanted: dict) -> str:
    """Never slower than torch for a plain call; the fused kernel for what torch's attention does not take."""
    if query.device.type != "cuda":
        return "sdpa"
    if not any(wanted.values()) and not isinstance(given["scale"], Tensor) and not _wider(given["attn_mask"], query):
        choice = measured_choice(query, key, value, given["attn_mask"], given["is_causal"])
    else:
        choice = "triton"
    return "sdpa" if choice == "triton" and _reasons("triton", query, key, value, given, wanted) else choice


def _plain_scale(scale: float | Tensor | None, query: Tensor) -> float | Tensor | None:
    """Numbers (NumPy's too) as float; a 0-d tensor on the query's device, as a float where that needs no waiting."""
    if scale is None:
        return None
    if isinstance(scale, Real):
        return float(scale)
    if scale.device.type == "cpu" and not torch.compiler.is_compiling() and is_plain(scale) and not traced():
        if scale.dim() == 0 and not scale.requires_grad:
            return check_finite(scale.item())
        if not scale.detach().isfinite().all():  # of a scale on another device, the host would have to wait for it
            raise ValueError(f"scale must be finite, got {scale.tolist()}")
    if scale.dim() == 0 and (scale.requires_grad or scale.device.type != "cpu"):
        return scale.to(query.device)
    return scale


def _is_plain(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether the shapes are those :func:`attention` takes; torch's attention also broadcasts and takes other ranks."""
    if not query.dim() == key.dim() == value.dim() == 4:
        return False
    q, k, v = query.shape, key.shape, value.shape
    return q[0] == k[0] == v[0] and (enable_gqa or q[1] == k[1] == v[1])


def _measured(query: Tensor, key: Tensor, value: Tensor, options: dict) -> bool:
    """Whether a call is one that was measured, so that nothing in it is to be refused."""
    tensors = query, key, value
    if options["attn_mask"] is not None or not (all(isinstance(t, Tensor) for t in tensors) and is_plain(*tensors)):
        return False
    tensors = _autocast(*tensors)
    one_kind = len({(t.device, t.dtype) for t in tensors}) == 1 and key.shape[:3] == value.shape[:3]
    return one_kind and _is_plain(*tensors, False) and 0 < query.shape[3] == key.shape[3]


def _wider(attn_mask: Tensor | None, query: Tensor) -> bool:
    """A mask to add that torch's fused attention does not take with this query."""
    return attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to the arguments of torch's attention: float64 stays, other floats take the region's dtype."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not (has_autocast(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )
