"""The operator of calls with every argument: key groups and all statistics of rows, as one node of a graph.

It stands beside that of `operator.py`, which is for the other calls. The graph has factors and biases as they were
passed: their values are checked, and put in place, when the graph runs, so that no graph is for one value or group.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..errors import refusal
from ..kernels.common.arguments import allocate_like
from ..kernels.common.call import AllResults
from .autocast import no_autocast
from .checks import check_range, checked_call
from .choice import AUTO
from .full_call import full_attention
from .implementations import IMPLEMENTATIONS
from .key_groups import KeyValues, check_row_range, checked_number, checked_pairs, require_tables
from .operator import absent, gradient_like, laid_out, no_second_order, no_vmap, scale_as_tensor, statistics_dtype
from .recomputed import recomputed_gradients
from .tensor_kinds import as_causal

_NUMBER, _TENSOR = 0, 1  # what the value of a pair was
_TENSORS = 5  # with a gradient, before those of key_scale and key_bias: query, key, value, attn_mask, scale


class _Flags(NamedTuple):
    is_causal: bool
    enable_gqa: bool
    lse: bool
    entropy: bool
    variance: bool
    max: bool


class _Ranges(NamedTuple):
    """Operators take numbers: 0 and 0 stand for None."""

    map_start: int
    map_stop: int
    mass_start: int
    mass_stop: int
    rows_start: int
    rows_stop: int


def attention_all_operator(
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
) -> AllResults:
    """`full_attention` while torch.compile traces the call."""
    if attn_mask is not None:
        attn_mask, is_causal = as_causal(attn_mask, is_causal, query, key)
    call = checked_call(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, return_lse, return_entropy, map_keys
    )  # fmt: skip
    call.return_variance, call.return_max = "variance" in statistics, "max" in statistics
    if mass_keys is not None:
        call.mass_keys = check_range("mass_keys", mass_keys, key.shape[2], "None, (start, stop) or a slice")
    rows, groups = None, None
    if key_rows is not None:
        require_tables(key_scale, key_bias, key_rows)
        if isinstance(key_rows, Tensor):
            groups = key_rows
        else:
            rows = check_row_range(key_rows, query.shape[2])
    factors, factor_ranges = _flat("key_scale", key_scale, key.shape[2])
    biases, bias_ranges = _flat("key_bias", key_bias, key.shape[2])
    if impl != AUTO:
        call.key_scale, call.key_bias = _stand_in(factors, factor_ranges), _stand_in(biases, bias_ranges)
        reasons = IMPLEMENTATIONS[impl].reasons(call)
        if reasons:  # a built-in error, since torch.compile cannot trace `Unsupported`, and would not show its message
            raise RuntimeError(refusal(impl, reasons))
    flags = _Flags(call.is_causal, enable_gqa, return_lse, return_entropy, call.return_variance, call.return_max)
    ranges = _Ranges(*(call.map_keys or (0, 0)), *(call.mass_keys or (0, 0)), *(rows or (0, 0)))
    out, *found = _attention_all(
        call.query, call.key, call.value, call.attn_mask, scale_as_tensor(call.scale), factors, biases, groups,
        list(flags), list(ranges), factor_ranges, bias_ranges, impl,
    )  # fmt: skip
    return AllResults(out, *(t if wanted else None for t, wanted in zip(found, _asked(flags, ranges), strict=True)))


def _asked(flags: _Flags, ranges: _Ranges) -> tuple[bool, ...]:
    """Which statistics are wanted, in the order of `AllResults`."""
    of_map, of_mass = ranges.map_stop > ranges.map_start, ranges.mass_stop > ranges.mass_start
    return flags.lse, flags.entropy, of_map, flags.variance, flags.max, of_mass


def _flat(name: str, given: KeyValues | None, seqlen_k: int) -> tuple[list[Tensor], list[int]]:
    """Factors or biases as operators take them: tensors, and the number of pairs with (start, stop, kind) of each."""
    if given is None or isinstance(given, Tensor):
        return ([] if given is None else [given]), [0]
    pairs = checked_pairs(name, given, seqlen_k)
    values: list[Tensor] = []
    ranges = [len(pairs)]
    for start, stop, value in pairs:
        if isinstance(value, Tensor):
            values.append(value)
            ranges += [start, stop, _TENSOR]
        else:  # times a tensor, as in `scale_as_tensor`
            values.append(torch.ones((), dtype=torch.float64) * checked_number(name, value))
            ranges += [start, stop, _NUMBER]
    return values, ranges


def _as_given(values: Sequence[Tensor], ranges: Sequence[int]) -> KeyValues | None:
    """What `_flat` was given."""
    if not ranges[0]:
        return values[0] if values else None
    parts = zip(values, ranges[1::3], ranges[2::3], ranges[3::3], strict=True)
    return [((start, stop), value.item() if kind == _NUMBER else value) for value, start, stop, kind in parts]


def _stand_in(values: Sequence[Tensor], ranges: Sequence[int]) -> Tensor | None:
    """A tensor in the place of the table, for an implementation's reasons, which do not read its numbers."""
    kinds = ranges[3::3] if ranges[0] else [_TENSOR] * len(values)
    tensors = [t for t, kind in zip(values, kinds, strict=True) if kind == _TENSOR]
    recorded = [t for t in tensors if t.requires_grad]
    return (recorded or tensors or [torch.empty(0)])[0] if values else None


@torch.library.custom_op(add_op_namespace_prefix("attention_all"), mutates_args=())
def _attention_all(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: Tensor | None,
    key_scale: list[Tensor],
    key_bias: list[Tensor],
    key_groups: Tensor | None,
    flags: list[bool],
    ranges: list[int],
    key_scale_ranges: list[int],
    key_bias_ranges: list[int],
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors, count = (query, key, value, attn_mask, scale, *key_scale, *key_bias), len(key_scale)
    with torch.no_grad():
        out, *statistics = _computed(tensors, count, key_groups, flags, ranges, key_scale_ranges, key_bias_ranges, impl)
    # As the fake below promises
    return cast(Any, (laid_out(out, query), *(absent(query) if t is None else t.contiguous() for t in statistics)))


def _computed(
    tensors: Sequence[Any],
    num_factors: int,
    key_groups: Tensor | None,
    flags: Sequence[bool],
    ranges: Sequence[int],
    key_scale_ranges: Sequence[int],
    key_bias_ranges: Sequence[int],
    impl: str,
) -> AllResults:
    """The call where nothing is traced, of its tensors with a gradient and the rest."""
    query, key, value, attn_mask, scale, *by_key = tensors
    wanted, (*of_map, mass_start, mass_stop, rows_start, rows_stop) = _Flags(*flags), ranges
    rows = key_groups if key_groups is not None else _range(rows_start, rows_stop)
    statistics = [name for name, asked in (("variance", wanted.variance), ("max", wanted.max)) if asked]
    with no_autocast(query.device.type):  # it was asked when the call was traced
        return full_attention(
            impl, query, key, value, attn_mask, wanted.is_causal, scale, wanted.enable_gqa, wanted.lse, wanted.entropy,
            _range(*of_map), _as_given(by_key[:num_factors], key_scale_ranges),
            _as_given(by_key[num_factors:], key_bias_ranges), rows, statistics, _range(mass_start, mass_stop),
        )  # fmt: skip


def _range(start: int, stop: int) -> tuple[int, int] | None:
    return (start, stop) if stop > start else None


@_attention_all.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: Tensor | None,
    key_scale: list[Tensor],
    key_bias: list[Tensor],
    key_groups: Tensor | None,
    flags: list[bool],
    ranges: list[int],
    *_: Any,
) -> tuple[Tensor, ...]:
    rows, width = query.shape[:3], ranges[1] - ranges[0]
    shapes = [rows, rows, (query.shape[0], query.shape[2], width), rows, rows, rows]
    asked = _asked(_Flags(*flags), _Ranges(*ranges))
    statistics = (
        query.new_empty(shape, dtype=statistics_dtype(query)) if wanted else absent(query)
        for shape, wanted in zip(shapes, asked, strict=True)
    )
    return allocate_like(query, value.shape[3]), *statistics


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, key_scale, key_bias, key_groups = inputs[: _TENSORS + 3]
    ctx.options, ctx.counts = inputs[_TENSORS + 3 :], (len(key_scale), len(key_bias))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, key_groups, *key_scale, *key_bias)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    *tensors, key_groups = ctx.saved_tensors[: _TENSORS + 1]
    by_key, count = ctx.saved_tensors[_TENSORS + 1 :], ctx.counts[0]
    needs = list(ctx.needs_input_grad[:_TENSORS])
    for of_list, number in zip(ctx.needs_input_grad[_TENSORS : _TENSORS + 2], ctx.counts, strict=True):
        needs += of_list if number else []
    flags, ranges, *rest = ctx.options
    wanted = (True, *_asked(_Flags(*flags), _Ranges(*ranges)))
    given = [g if asked else None for g, asked in zip(grads, wanted, strict=True)]
    found = _attention_all_backward(
        *tensors, list(by_key[:count]), list(by_key[count:]), key_groups, *given, flags, ranges, *rest, needs
    )
    results = [t if need else None for t, need in zip(found, needs, strict=True)]
    tables = results[_TENSORS : _TENSORS + count], results[_TENSORS + count :]
    return (*results[:_TENSORS], *tables, *(None,) * 6)


@torch.library.custom_op(add_op_namespace_prefix("attention_all_backward"), mutates_args=())
def _attention_all_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: Tensor | None,
    key_scale: list[Tensor],
    key_bias: list[Tensor],
    key_groups: Tensor | None,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_map: Tensor | None,
    grad_variance: Tensor | None,
    grad_max: Tensor | None,
    grad_mass: Tensor | None,
    flags: list[bool],
    ranges: list[int],
    key_scale_ranges: list[int],
    key_bias_ranges: list[int],
    impl: str,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of query, key, value, attn_mask, scale, and the tensors of key_scale and key_bias."""
    tensors, count = (query, key, value, attn_mask, scale, *key_scale, *key_bias), len(key_scale)

    def results(*given: Tensor | None) -> AllResults:
        return _computed(given, count, key_groups, flags, ranges, key_scale_ranges, key_bias_ranges, impl)

    grads = (grad_out, grad_lse, grad_entropy, grad_map, grad_variance, grad_max, grad_mass)
    found = recomputed_gradients(results, tensors, grads, needs)
    pairs = zip(tensors, found, strict=True)
    return [absent(query) if gradient is None else gradient_like(cast(Any, t), gradient) for t, gradient in pairs]


@_attention_all_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    scale: Tensor | None,
    key_scale: list[Tensor],
    key_bias: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    tensors, needs = (query, key, value, attn_mask, scale, *key_scale, *key_bias), rest[-1]
    return [gradient_like(cast(Any, t)) if need else absent(query) for t, need in zip(tensors, needs, strict=True)]


for _operator in (_attention_all, _attention_all_backward):
    _operator.register_vmap(no_vmap)
_attention_all.register_autograd(_backward, setup_context=_setup)
_attention_all_backward.register_autograd(no_second_order)
