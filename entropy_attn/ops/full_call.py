"""One call with every argument of `attention`: checked, and computed where nothing is traced."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from ..errors import Unsupported
from ..kernels.common.call import AllResults, AttentionCall
from .checks import check_range, checked_call
from .choice import implementation, kind_reasons
from .key_groups import KeyValues, checked_key_groups, named_tensors
from .tensor_kinds import as_causal, is_plain, without_class


def full_call(
    impl: str,
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
    key_scale: KeyValues | None,
    key_bias: KeyValues | None,
    key_rows: tuple[int, int] | slice | Tensor | None,
    statistics: Collection[str],
    mass_keys: tuple[int, int] | slice | None,
) -> tuple[AttentionCall | None, list[str]]:
    """The call with all arguments; None and the reasons if `impl` cannot read its tensors."""
    if attn_mask is not None:
        attn_mask, is_causal = as_causal(attn_mask, is_causal, query, key)
    groups = {**named_tensors("key_scale", key_scale), **named_tensors("key_bias", key_bias)}
    tensors = (query, key, value, attn_mask, scale)
    if not is_plain(*tensors, *groups.values()):
        if reasons := kind_reasons(impl, *tensors, **groups):
            return None, reasons
        query, key, value, attn_mask, scale = map(without_class, tensors)
        key_scale, key_bias = map(without_class, (key_scale, key_bias))
    call = checked_call(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, return_entropy, map_keys
    )  # fmt: skip
    if is_causal and key_rows is not None:
        raise ValueError(f"key_rows: expected None with is_causal=True, got {key_rows!r}")
    call.key_scale, call.key_bias, call.key_rows = checked_key_groups(
        key_scale, key_bias, key_rows, call.query, call.key
    )
    call.return_variance, call.return_max = "variance" in statistics, "max" in statistics
    if mass_keys is not None:
        call.mass_keys = check_range("mass_keys", mass_keys, key.shape[2], "None, (start, stop) or a slice")
    return call, []


def full_attention(impl: str, *arguments: Any) -> AllResults:
    """The results of the call, by the implementation that serves it. The arguments are those of `full_call`.

    Raises:
        TypeError, ValueError: an argument has no meaning.
        Unsupported: `impl` cannot serve the call.
    """
    call, reasons = full_call(impl, *arguments)
    if call is None:
        raise Unsupported(impl, reasons)
    return implementation(impl, call).run_all(call)
