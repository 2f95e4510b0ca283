"""The public calls: argument checks and the choice of an implementation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Unsupported
from ..validation import require_bool
from .autocast import as_autocast
from .checks import ROW_STATISTICS, asked_statistics, check_scale, checked_call
from .choice import (
    AUTO,
    IMPLS,
    TORCH,
    check_impl,
    implementation,
    kind_reasons,
    may_be_measured,
    may_choose,
    takes_shapes,
)
from .full_call import full_attention, full_call
from .implementations import IMPLEMENTATIONS
from .key_groups import KeyValues
from .operator_all import attention_all_operator
from .sdpa import torch_attention
from .tensor_kinds import as_causal, is_plain, without_class


class AttentionOutput(NamedTuple):
    """The result of `attention`. A statistic that was not requested is None.

    Statistics are float32, or float64 where the query is float64.

    Attributes:
        out: (B, H, Nq, Dv), in the query's dtype. 0 for a row without keys to attend.
        lse: (B, H, Nq), the natural logarithm of the sum of exponentials of a row's logits (scaled scores plus mask).
            -inf for a row without keys.
        entropy: (B, H, Nq), -sum_j P_ij ln P_ij of a row's probabilities P_ij, in nats, from 0 to ln(Nk). 0 for a row
            without keys.
        map: (B, Nq, stop - start), the probabilities of the keys of `map_keys`, mean over heads. 0 for a row without
            keys.
        variance: (B, H, Nq), sum_j P_ij (s_ij - sum_k P_ik s_ik)^2, the variance of a row's logits s_ij under its own
            softmax. Without a mask or bias that adds to the logits it is -dH / d ln(scale). 0 for a row without keys.
        max: (B, H, Nq), a row's largest logit. -inf for a row without keys.
        mass: (B, H, Nq), the probability of the keys of `mass_keys` together. 0 for a row without keys.
    """

    out: Tensor
    lse: Tensor | None
    entropy: Tensor | None
    map: Tensor | None
    variance: Tensor | None = None
    max: Tensor | None = None
    mass: Tensor | None = None


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
    key_scale: KeyValues | None = None,
    key_bias: KeyValues | None = None,
    key_rows: tuple[int, int] | slice | Tensor | None = None,
    statistics: Sequence[str] = (),
    mass_keys: tuple[int, int] | slice | None = None,
    impl: str = "auto",
) -> AttentionOutput:
    """Softmax attention with a scale per call, and on request its log-sum-exp, entropy and head-averaged map.

    out = P @ value with P = softmax(scale * query @ key^T + attn_mask), computed block by block with an online softmax
    (Dao et al., FlashAttention, NeurIPS 2022), so that P is never stored. The entropy of each row of P comes from the
    same sums. Jin et al. (Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis, NeurIPS
    2023) derive a scale from the number of tokens, to keep this entropy at other image sizes.

    `key_scale` and `key_bias` give keys a factor f_j and a bias b_j of their own, for all queries or for some: the
    logits are then s_ij = scale * f_j * (query_i . key_j) + b_j + attn_mask_ij. All statistics are of the result.

    Every result is differentiable in query, key and value, and in a mask, scale, `key_scale` or `key_bias` that is a
    floating-point tensor.

    Args:
        query: (B, H, Nq, D), float16, bfloat16, float32 or float64, with any strides.
        key: (B, Hkv, Nk, D), with the query's dtype and device.
        value: (B, Hkv, Nk, Dv), with the query's dtype and device.
        attn_mask: broadcasts to (B, H, Nq, Nk), with 0 to 4 dimensions. Boolean: True = attend. Of any floating-point
            dtype: added to the logits as it is, never rounded to the query's dtype; -inf excludes a key. Or torch's
            `CausalBias`.
        is_causal: query i attends keys 0 to i, also where Nq != Nk. Excludes `attn_mask`.
        scale: factor on query @ key^T. None is 1 / sqrt(D); otherwise any finite number, a 0-d tensor, an (H,) tensor
            with one factor per head, or a tensor (B, H), (B, 1) or (1, H) with one per sample and head. A tensor on a
            GPU is not checked, since the host would have to wait for it: NaN there makes its heads NaN.
        enable_gqa: allow numbers of key and value heads that divide H, and may differ. Each key or value head then
            serves as many consecutive query heads.
        return_lse: fill `lse` of the result.
        return_entropy: fill `entropy` of the result.
        map_keys: `(start, stop)` or a slice of the keys; fills `map` with their probabilities, which are normalized
            over all keys and averaged over heads. Negative numbers count from the end.
        key_scale: factors on the products of the query with certain keys. Either pairs ((start, stop), factor), with
            ranges of keys that do not overlap, or slices; a factor is a number or a tensor that broadcasts to (B, H);
            keys in no range have the factor 1. Or a tensor with a factor for every key: (Nk,), (H or 1, Nk), or
            (B or 1, H or 1, Nk).
        key_bias: what is added to the logits of certain keys, in the same forms; -inf excludes keys. It is not rounded
            to the query's dtype, like `attn_mask`: torch's attention computes in the wider dtype of the two. Numbers
            in pairs take the query's dtype if that has them exactly.
        key_rows: the queries that `key_scale` and `key_bias` are for: None, all; `(start, stop)` or a slice, these
            alone; or an integer tensor (Nq,) on the CPU with the group of each query. With groups, `key_scale` and
            `key_bias` are tensors (..., groups, Nk) with a row for each group. Excludes `is_causal`.
        statistics: names of what to fill in the result: "lse", "entropy", "variance", "max", "mass". It adds to
            `return_lse` and `return_entropy`.
        mass_keys: `(start, stop)` or a slice of the keys for the statistic "mass".
        impl: "triton" (the fused kernels), "sdpa" (torch's operations), "reference" (float64, holds the whole matrix),
            or "auto": the fused kernels on a GPU for what torch's attention does not offer and where they were measured
            to be faster, else torch. A name other than "auto" never falls back to another implementation. The fused
            kernels have no gradients of `key_scale`, `key_bias` and of the statistics "variance", "max" and "mass":
            with them "auto" takes torch's operations. In a graph of torch.compile a call with these arguments is one
            operator, whose backward pass computes the call again.

    Returns:
        The output and the requested statistics. A row without keys to attend has out 0, lse -inf, entropy 0, map 0 and
        no gradient. NaN in a row's logits makes its statistics NaN.

    Raises:
        TypeError: an argument has a type or dtype that is not allowed.
        ValueError: an argument has a shape, device or value that is not allowed.
        Unsupported: `impl` cannot serve the call, or a tensor is of a kind that it cannot read: nested, a subclass with
            other operations, or inside a functorch transform. Without statistics and key groups torch's attention
            serves those that it knows.
    """
    if impl not in IMPLS:  # asked here too: a correct call costs the host no function call for it
        check_impl(impl)
    if type(return_lse) is not bool or type(return_entropy) is not bool:
        require_bool("return_lse", return_lse)
        require_bool("return_entropy", return_entropy)
    of_rows: Collection[str] = ()
    if statistics != () or mass_keys is not None:
        asked = asked_statistics(statistics, mass_keys)
        return_lse, return_entropy = return_lse or "lse" in asked, return_entropy or "entropy" in asked
        of_rows = asked & ROW_STATISTICS
    if of_rows or key_scale is not None or key_bias is not None or key_rows is not None:
        arguments = (
            impl, query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, return_entropy, map_keys,
            key_scale, key_bias, key_rows, of_rows, mass_keys,
        )  # fmt: skip
        run = attention_all_operator if torch.compiler.is_compiling() else full_attention
        return AttentionOutput(*run(*arguments))
    if attn_mask is not None:
        attn_mask, is_causal = as_causal(attn_mask, is_causal, query, key)
    if not torch.compiler.is_compiling() and not is_plain(query, key, value, attn_mask, scale):
        tensors = (query, key, value, attn_mask, scale)
        reasons = kind_reasons(impl, *tensors)
        if reasons and (return_lse or return_entropy or map_keys is not None or impl not in TORCH):
            raise Unsupported(impl, reasons)
        if reasons:
            return AttentionOutput(_by_torch(*tensors, is_causal, enable_gqa, reasons), None, None, None)
        query, key, value, attn_mask, scale = map(without_class, tensors)
    call = checked_call(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, return_entropy, map_keys
    )  # fmt: skip
    return AttentionOutput(*implementation(impl, call).run(call))


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
    """`torch.nn.functional.scaled_dot_product_attention` with its signature, results and errors, for any scale.

    torch serves or refuses the call, except where a measurement on this GPU shows that the fused kernel is faster, and
    for scales that torch does not take.

    Args:
        query: (..., H, Nq, D), as for torch.
        key: (..., Hkv, Nk, D).
        value: (..., Hkv, Nk, Dv).
        attn_mask: as for torch: boolean (True = attend), or added to the logits.
        dropout_p: probability of dropout, applied whenever it is above 0.
        is_causal: query i attends keys 0 to i.
        scale: None or a number as for torch, also zero or negative together with `is_causal`; a 0-d tensor; an (H,)
            tensor with one factor per head; or, for a query of four dimensions, a tensor that broadcasts to (B, H). See
            `attention`.
        enable_gqa: allow fewer heads of key and value than of query, as for torch.

    Returns:
        (..., H, Nq, Dv), in the query's dtype.

    Raises:
        TypeError: `scale` is a tensor with an integer or boolean dtype.
        ValueError: `scale` is a tensor of another shape, or is not finite.
        RuntimeError: torch refuses the arguments.
    """
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if isinstance(scale, Tensor):
        if dropout_p == 0.0 and takes_shapes(query, key, value, enable_gqa):
            return attention(query, key, value, **options).out
        query, key, value = as_autocast(query, key, value)
        check_scale(scale, query)
        return torch_attention(query, key, value, dropout_p=dropout_p, **options)
    if type(scale) is float or (isinstance(scale, Real) and not isinstance(scale, bool)):
        options["scale"] = float(scale)  # NumPy's numbers too
        if scale <= 0:
            return torch_attention(query, key, value, dropout_p=dropout_p, **options)
    if dropout_p == 0.0 and isinstance(query, Tensor) and may_choose(query):
        if attn_mask is None and may_be_measured(query, key, value):  # which asked all that `attention` asks first
            call = checked_call(query, key, value, None, is_causal, options["scale"], enable_gqa, False, False, None)
            return implementation(AUTO, call).run(call)[0]
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
    key_scale: KeyValues | None = None,
    key_bias: KeyValues | None = None,
    key_rows: tuple[int, int] | slice | Tensor | None = None,
    statistics: Sequence[str] = (),
    mass_keys: tuple[int, int] | slice | None = None,
    impl: str = "triton",
) -> list[str]:
    """Every reason why `impl` cannot serve this call of `attention`. Nothing is computed.

    Args:
        query: (B, H, Nq, D). The arguments have the same meanings as those of `attention`.
        key: (B, Hkv, Nk, D).
        value: (B, Hkv, Nk, Dv).
        attn_mask: broadcasts to (B, H, Nq, Nk).
        is_causal: query i attends keys 0 to i.
        scale: factor on query @ key^T.
        enable_gqa: allow fewer heads of key and value than of query.
        return_lse: whether the call requests `lse`.
        return_entropy: whether the call requests `entropy`.
        map_keys: the keys whose map the call requests.
        key_scale: factors on the products of the query with certain keys.
        key_bias: what is added to the logits of certain keys.
        key_rows: the queries that `key_scale` and `key_bias` are for.
        statistics: names of the statistics that the call requests.
        mass_keys: the keys of the statistic "mass".
        impl: "triton", "sdpa", "reference" or "auto".

    Returns:
        One sentence per reason; an empty list where `impl` serves the call.

    Raises:
        TypeError: an argument has a type or dtype that is not allowed.
        ValueError: an argument has a shape, device or value that is not allowed.
    """
    check_impl(impl)
    require_bool("return_lse", return_lse)
    require_bool("return_entropy", return_entropy)
    of_rows: Collection[str] = ()
    if statistics != () or mass_keys is not None:
        asked = asked_statistics(statistics, mass_keys)
        return_lse, return_entropy = return_lse or "lse" in asked, return_entropy or "entropy" in asked
        of_rows = asked & ROW_STATISTICS
    if of_rows or key_scale is not None or key_bias is not None or key_rows is not None:
        call, reasons = full_call(
            impl, query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, return_entropy, map_keys,
            key_scale, key_bias, key_rows, of_rows, mass_keys,
        )  # fmt: skip
        return reasons if call is None or impl == AUTO else IMPLEMENTATIONS[impl].reasons(call)
    if attn_mask is not None:
        attn_mask, is_causal = as_causal(attn_mask, is_causal, query, key)
    if not is_plain(query, key, value, attn_mask, scale):
        tensors = (query, key, value, attn_mask, scale)
        reasons = kind_reasons(impl, *tensors)
        if reasons:
            return reasons if return_lse or return_entropy or map_keys is not None or impl not in TORCH else []
        query, key, value, attn_mask, scale = map(without_class, tensors)
    call = checked_call(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, return_entropy, map_keys
    )  # fmt: skip
    return [] if impl == AUTO else IMPLEMENTATIONS[impl].reasons(call)


def _by_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: float | Tensor | None,
    is_causal: bool,
    enable_gqa: bool,
    reasons: list[str],
) -> Tensor:
    """The output of torch's attention for tensors that no implementation reads, for these reasons."""
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    try:
        return torch_attention(query, key, value, **options)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        raise Unsupported("sdpa", [*reasons, f"torch's attention does not serve it either: {error}"]) from error
