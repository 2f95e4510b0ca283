"""The public calls: argument checks, the choice of an implementation, and nothing else."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from entropy_attn.autograd import attention_operator
from entropy_attn.checks import check_attention, check_map_keys, check_scale
from entropy_attn.dispatch import may_choose, measured_choice
from entropy_attn.errors import Unsupported
from entropy_attn.reference import attention_reference
from entropy_attn.sdpa import attention_sdpa, torch_attention
from entropy_attn.tracing import constant_in_graphs

IMPLS = ("auto", "triton", "sdpa", "reference")


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
        attn_mask: broadcasts to (B, H, Nq, Nk); boolean (True = attend) or floating-point (added to the logits).
        is_causal: query i attends keys 0..i, also where Nq != Nk. Excludes ``attn_mask``.
        scale: factor on QK^T. None is 1/sqrt(D); else any finite number, a 0-d tensor, or an (H,) tensor, one a head.
        enable_gqa: allow Hkv to be a divisor of H; each key head then serves H / Hkv consecutive query heads.
        return_lse, return_entropy: fill ``lse``, ``entropy`` of the result (float64 where the query is float64).
        map_keys: ``(start, stop)`` or a slice of the keys; fills ``map`` with the probabilities of these keys, which
            are normalised over all keys and averaged over the heads. Negative numbers count from the end.
        impl: "triton" (the fused kernel), "sdpa" (torch's own operations), "reference" (float64, holds the whole
            matrix), or "auto". A name other than "auto" never falls back: it raises :class:`Unsupported`.

    A row with no key to attend has out 0, lse -inf, entropy 0, map 0 and no gradient.
    """
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

    statistics = return_lse or return_entropy or map_keys is not None
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
    """``torch.nn.functional.scaled_dot_product_attention`` with its signature and meaning, for any scale.

    ``scale`` may also be zero, negative, a 0-d tensor or one factor a head. Calls with dropout, and shapes other than
    (B, H, N, D) with equal batch sizes and heads, are torch's to serve.
    """
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if dropout_p == 0.0 and _is_plain(query, key, value, enable_gqa):
        return attention(query, key, value, **options).out
    query, key, value = _autocast(query, key, value)
    check_scale(scale, query)
    return torch_attention(query, key, value, dropout_p=dropout_p, **options)


def attention_of_a_model(
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
    """The same for what a model gives to torch's attention: torch checks it again where it is torch's to serve."""
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if isinstance(scale, Tensor) or may_choose(query):
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, **options)
    return torch_attention(query, key, value, dropout_p=dropout_p, **options)


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
        from entropy_attn.kernels import support

        return support.unsupported_reasons(query, key, value, **given, **wanted)
    if impl == "reference" and query.device.type == "mps":
        return ["the reference computes in float64, which device mps does not have"]
    if impl in IMPLS:
        return []
    raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}; got {impl!r}")


def _auto(query: Tensor, key: Tensor, value: Tensor, given: dict, wanted: dict) -> str:
    """Never slower than torch for a plain call; the fused kernel for what torch's attention does not take."""
    if query.device.type != "cuda":
        return "sdpa"
    if not any(wanted.values()) and not isinstance(given["scale"], Tensor):
        choice = measured_choice(query, key, value, given["attn_mask"], given["is_causal"])
    else:
        choice = "triton"
    return "sdpa" if choice == "triton" and _reasons("triton", query, key, value, given, wanted) else choice


def _plain_scale(scale: float | Tensor | None, query: Tensor) -> float | Tensor | None:
    """Numbers (NumPy's too) as float; a 0-d tensor on the query's device, as a float where that needs no waiting."""
    if isinstance(scale, Real):
        return float(scale)
    if isinstance(scale, Tensor) and scale.dim() == 0:
        if scale.device.type == "cpu" and not scale.requires_grad:
            return scale if torch.compiler.is_compiling() else scale.item()
        return scale.to(query.device)
    return scale


def _is_plain(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether the shapes are those :func:`attention` takes; torch's attention also broadcasts and takes other ranks."""
    if not query.dim() == key.dim() == value.dim() == 4:
        return False
    q, k, v = query.shape, key.shape, value.shape
    return q[0] == k[0] == v[0] and (enable_gqa or q[1] == k[1] == v[1])


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to the arguments of torch's attention: float64 stays, other floats take the region's dtype."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not (_has_autocast(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


@constant_in_graphs  # older torch cannot trace the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
