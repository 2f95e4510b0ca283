"""A scale and a bias by key: the checks of `key_scale`, `key_bias` and `key_rows`, and plain calls in their place.

With the factors f and biases b of the query's group, logits are s_ij = scale * f_j * (q_i . k_j) + b_j + mask_ij.
f goes into the keys and b into a mask of one row, a group of queries at a time: nothing of the size Nq x Nk is made,
unless the call has an `attn_mask` of that size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..kernels.common.call import AllResults, AttentionCall
from .checks import check_range
from .tensor_kinds import is_plain, may_read

_DIMS = (2, 2, 2, 1, 2, 2, 2)  # of the queries: a map has no heads

Rows = tuple[int, int] | Tensor | None
Pairs = Sequence[tuple[tuple[int, int] | slice, "float | Tensor"]]
KeyValues = Tensor | Pairs


def named_tensors(name: str, given: object) -> dict[str, Tensor]:
    """The tensors in the value of `key_scale` or `key_bias`, by the name of the argument."""
    if isinstance(given, Tensor):
        return {name: given}
    pairs = given if isinstance(given, (tuple, list)) else ()
    values = (pair[1] for pair in pairs if isinstance(pair, (tuple, list)) and len(pair) == 2)
    return {f"{name}[{at}]": value for at, value in enumerate(values) if isinstance(value, Tensor)}


def checked_key_groups(
    key_scale: KeyValues | None,
    key_bias: KeyValues | None,
    key_rows: Any,
    query: Tensor,
    key: Tensor,
) -> tuple[Tensor | None, Tensor | None, Rows]:
    """The tables (B|1, H|1, groups, Nk) and the rows of `AttentionCall`, for checked tensors.

    Raises:
        TypeError, ValueError: an argument has no meaning for this call.
    """
    rows = None
    if key_rows is not None:
        require_tables(key_scale, key_bias, key_rows)
        rows = _checked_rows(key_rows, query.shape[2])
    grouped = isinstance(rows, Tensor)
    scale, bias = (
        None if given is None else _table(name, given, neutral, grouped, query, key.shape[2])
        for name, given, neutral in (("key_scale", key_scale, 1.0), ("key_bias", key_bias, 0.0))
    )
    if isinstance(rows, Tensor):
        counts = {name: t.shape[2] for name, t in (("key_scale", scale), ("key_bias", bias)) if t is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"key_scale, key_bias: expected as many groups of queries, got {counts}")
        groups = next(iter(counts.values()))
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < groups:
            raise ValueError(
                f"key_rows: expected numbers of groups from 0 to {groups - 1}, got {int(rows.min())} to "
                f"{int(rows.max())}"
            )
    return scale, bias, rows


def require_tables(key_scale: Any, key_bias: Any, key_rows: Any) -> None:
    """Queries are those of a factor or a bias."""
    if key_scale is None and key_bias is None:
        raise ValueError(f"key_rows: expected None without key_scale and key_bias, got {key_rows!r}")


def check_row_range(key_rows: Any, seqlen_q: int) -> tuple[int, int]:
    """The queries of `key_rows` that is no tensor."""
    return check_range("key_rows", key_rows, seqlen_q, "None, (start, stop), a slice or a tensor of group numbers")


def plain_calls(call: AttentionCall) -> Iterable[tuple[slice | Tensor, AttentionCall]]:
    """Calls without key groups that together are this call, each with the queries that it is for."""
    for rows, group in _groups(call):
        key, mask = call.key, _rows_of_mask(call.attn_mask, rows)
        if group is not None and call.key_scale is not None:
            key = _scaled(call, call.key_scale[:, :, group, :, None])
        if group is not None and call.key_bias is not None:
            mask = with_bias(mask, call.key_bias[:, :, group, None, :])
        query = call.query if rows == slice(None) else _picked(call.query, rows)
        yield (
            rows,
            replace(call, query=query, key=key, attn_mask=mask, key_scale=None, key_bias=None, key_rows=None),
        )


def calls_with_one_table(call: AttentionCall) -> Iterable[tuple[slice | Tensor, AttentionCall]]:
    """Calls whose queries share a table, together this call, each with the queries that it is for."""
    for rows, group in _groups(call):
        scale, bias = (
            None if t is None or group is None else t[:, :, group : group + 1] for t in (call.key_scale, call.key_bias)
        )
        yield (
            rows,
            replace(
                call, query=_picked(call.query, rows), attn_mask=_rows_of_mask(call.attn_mask, rows), key_scale=scale,
                key_bias=bias, key_rows=None,
            ),
        )  # fmt: skip


def run_by_group(
    call: AttentionCall,
    run: Callable[[AttentionCall], AllResults],
    calls: Callable[[AttentionCall], Iterable[tuple[slice | Tensor, AttentionCall]]] = plain_calls,
) -> AllResults:
    """The results of `run`, a group of queries after the other, for each of the `calls` that this one is made of."""
    parts = list(calls(call))
    results = [run(part) for _, part in parts]
    if len(parts) == 1:
        return results[0]
    back = None  # ranges come in order
    indices = [rows for rows, _ in parts if isinstance(rows, Tensor)]
    if indices:
        back = torch.cat(indices).argsort()
    return AllResults(*(_joined(same, back, dim) for same, dim in zip(zip(*results, strict=True), _DIMS, strict=True)))


def with_bias(mask: Tensor | None, bias: Tensor) -> Tensor:
    """One additive mask of both: where a boolean mask is False, and where either is -inf, nothing is attended."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, -math.inf)
    return mask + bias


def _groups(call: AttentionCall) -> Iterable[tuple[slice | Tensor, int | None]]:
    """The queries of each group with its number; None for queries whose keys are left as they are."""
    rows, seqlen_q = call.key_rows, call.query.shape[2]
    if rows is None:
        yield slice(None), 0
    elif isinstance(rows, Tensor):
        for group in rows.unique().tolist():  # on the host, in order
            yield (rows == group).nonzero().flatten().to(call.query.device, non_blocking=True), group
        if not seqlen_q:
            yield slice(None), None
    else:
        parts = (slice(0, rows[0]), None), (slice(*rows), 0), (slice(rows[1], seqlen_q), None)
        yield from (part for part in parts if part[0].stop > part[0].start)


def _scaled(call: AttentionCall, factor: Tensor) -> Tensor:
    """The keys times their factors, with one rounding: of the product, and none where statistics compute wider."""
    key, wide = call.key, torch.promote_types(call.query.dtype, torch.float32)
    if factor.shape[1] > 1 and key.shape[1] != factor.shape[1]:
        key = key.repeat_interleave(factor.shape[1] // key.shape[1], dim=1)
    product = key.to(wide) * factor.to(torch.promote_types(factor.dtype, wide))
    return product.to(wide) if call.statistics else product.to(key.dtype)


def _picked(t: Tensor, rows: slice | Tensor) -> Tensor:
    return t[:, :, rows] if isinstance(rows, slice) else t.index_select(2, rows)


def _rows_of_mask(mask: Tensor | None, rows: slice | Tensor) -> Tensor | None:
    if mask is None or mask.dim() < 2 or mask.shape[-2] == 1 or (isinstance(rows, slice) and rows == slice(None)):
        return mask
    return mask[..., rows, :] if isinstance(rows, slice) else mask.index_select(-2, rows)


def _joined(parts: Sequence[Tensor | None], back: Tensor | None, dim: int) -> Any:
    """One result of all queries, which are its dimension `dim`; None where it was not asked for."""
    tensors = [t for t in parts if t is not None]
    if not tensors:
        return None
    joined = torch.cat(tensors, dim)
    return joined if back is None else joined.index_select(dim, back)


def _checked_rows(key_rows: Any, seqlen_q: int) -> Rows:
    if not isinstance(key_rows, Tensor):
        return check_row_range(key_rows, seqlen_q)
    if key_rows.is_floating_point() or key_rows.is_complex() or key_rows.dtype == torch.bool:
        raise TypeError(f"key_rows: expected an integer tensor, got {key_rows.dtype}")
    if key_rows.shape != (seqlen_q,):
        raise ValueError(f"key_rows: expected one group number per query, ({seqlen_q},), got {tuple(key_rows.shape)}")
    if not (
        is_plain(key_rows) and may_read(key_rows)
    ):  # the groups are computed one after the other, so the host has to know them
        raise ValueError(f"key_rows: expected a plain tensor on the cpu, got one on {key_rows.device}")
    return key_rows.long()


def _table(name: str, given: Any, neutral: float, grouped: bool, query: Tensor, seqlen_k: int) -> Tensor:
    if isinstance(given, Tensor):
        return _table_of_tensor(name, given, grouped, query, seqlen_k)
    if grouped:
        raise TypeError(f"{name}: expected a tensor with a row per group of queries, got {type(given).__name__}")
    return _table_of_pairs(name, given, neutral, query, seqlen_k)


def _table_of_tensor(name: str, given: Tensor, grouped: bool, query: Tensor, seqlen_k: int) -> Tensor:
    _require_floats(name, given, query)
    batch, heads = query.shape[:2]
    least, shape = (2, "(batch, heads, groups, keys)") if grouped else (1, "(batch, heads, keys)")
    allowed = (batch, heads, None, seqlen_k) if grouped else (batch, heads, seqlen_k)
    sizes = list(zip(reversed(given.shape), reversed(allowed), strict=False))
    fits = least <= given.dim() <= len(allowed) and given.shape[-1] == seqlen_k
    if not (fits and all(want is None or have in (1, want) for have, want in sizes)):
        wanted = ", ".join("groups" if want is None else str(want) for want in allowed)
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {shape} = ({wanted}) with all keys, got {tuple(given.shape)}"
        )
    _require_values(name, given)
    table = given if grouped else given.unsqueeze(-2)
    return table[(None,) * (4 - table.dim())]


def checked_pairs(name: str, given: Any, seqlen_k: int) -> list[tuple[int, int, Any]]:
    """(start, stop, value) of pairs ((start, stop), value), whose values are not checked."""
    what = "a tensor, or pairs ((start, stop), value)"
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"{name}: expected {what}, got {given!r}")
    if not given:
        raise ValueError(f"{name}: expected at least one pair ((start, stop), value), got {given!r}")
    ranges: list[tuple[int, int, Any]] = []
    for pair in given:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{name}: expected {what}, got {pair!r} among them")
        start, stop = check_range(name, pair[0], seqlen_k, "a range (start, stop) or a slice of keys")
        ranges.append((start, stop, pair[1]))
    return ranges


def _table_of_pairs(name: str, given: Any, neutral: float, query: Tensor, seqlen_k: int) -> Tensor:
    ranges = [(*part[:2], _value(name, part[2], query)) for part in checked_pairs(name, given, seqlen_k)]
    ranges.sort(key=lambda part: part[:2])
    for (_, before, _), (start, stop, _) in pairwise(ranges):
        if start < before:
            raise ValueError(f"{name}: expected ranges of keys without overlap, got one to {before} and {start, stop}")
    dtype = ranges[0][2].dtype
    for _, _, value in ranges[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    rest = torch.full((1, 1), neutral, dtype=dtype, device=query.device)
    pieces, end = [], 0
    for start, stop, value in ranges:
        pieces += [(rest, start - end), (value.to(dtype), stop - start)]
        end = stop
    pieces.append((rest, seqlen_k - end))
    shape = [max(piece.shape[at] for piece, _ in pieces) for at in (0, 1)]
    return torch.cat([piece[..., None, None].expand(*shape, 1, length) for piece, length in pieces], dim=-1)


def _value(name: str, value: Any, query: Tensor) -> Tensor:
    """(B|1, H|1). A number takes the query's dtype if that holds it, so that no wider one is computed in."""
    if isinstance(value, Tensor):
        _require_floats(name, value, query)
        batch, heads = query.shape[:2]
        sizes = zip(reversed(value.shape), (heads, batch), strict=False)
        if value.dim() > 2 or not all(have in (1, want) for have, want in sizes):
            raise ValueError(
                f"{name}: expected numbers, or tensors that broadcast to (batch, heads) = {batch, heads}, got shape "
                f"{tuple(value.shape)}"
            )
        _require_values(name, value)
        return value[(None,) * (2 - value.dim())]
    number = float(checked_number(name, value))
    if math.isnan(number) or number == math.inf or (number == -math.inf and name == "key_scale"):
        raise ValueError(f"{name}: expected {_ALLOWED[name]}, got {value!r}")
    narrow = torch.tensor([[number]], dtype=query.dtype)
    exact = narrow.item() == number
    wide = torch.promote_types(query.dtype, torch.float32)
    return (narrow if exact else torch.tensor([[number]], dtype=wide)).to(query.device)


def checked_number(name: str, value: Any) -> Any:
    """The value of a pair that is no tensor."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, (Real, Integral))):
        raise TypeError(f"{name}: expected a number or a tensor for each range of keys, got {value!r}")
    return value


_ALLOWED = {"key_scale": "finite numbers", "key_bias": "finite numbers or -inf"}


def _require_floats(name: str, given: Tensor, query: Tensor) -> None:
    if not given.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {given.dtype}")
    if given.device != query.device:
        raise ValueError(f"{name}: expected the query's device {query.device}, got {given.device}")


def _require_values(name: str, given: Tensor) -> None:
    """Of a tensor on another device than the CPU, the host would have to wait for them."""
    if not (is_plain(given) and may_read(given)):
        return
    values = given.detach()
    allowed = values.isfinite() if name == "key_scale" else values < math.inf  # NaN is not below it
    if not allowed.all():
        raise ValueError(f"{name}: expected {_ALLOWED[name]}, got {values[~allowed][0].item()}")
