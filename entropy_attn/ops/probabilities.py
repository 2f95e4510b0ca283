"""Probabilities of chosen queries and keys from the log-sum-exp of the rows, without the matrix of all of them.

A probability is exp(logit - L) with L the row's log-sum-exp over all keys, which a call of `attention` returns beside
its output. So any part of the matrix costs the products of that part alone, however many keys its rows are normalized
over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .autocast import as_autocast, no_autocast
from .key_groups import KeyValues, checked_key_groups
from .reference import softmax_scale

BLOCK_SCORES = 1 << 24  # of the logits that are held at once

Tokens = slice | Tensor  # a range, indices (tokens,), or (B, tokens) of each sample, on the query's device


class Logits(NamedTuple):
    """What makes the logits of an attention call beside query and key; see `attention`."""

    scale: float | Tensor | None = None
    attn_mask: Tensor | None = None
    key_scale: KeyValues | None = None
    key_bias: KeyValues | None = None
    key_rows: tuple[int, int] | slice | Tensor | None = None


@torch.no_grad()
def probabilities(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    logits: Logits = Logits(),  # noqa: B008  (immutable)
    *,
    rows: Tokens,
    keys: Tokens,
    heads: Sequence[int] | None = None,
    row_weights: Tensor | None = None,
    key_weights: Tensor | None = None,
) -> Tensor:
    """The probabilities of some keys for some queries, or weighted sums of them, a block of rows at a time.

    Args:
        query: (B, H, Nq, D).
        key: (B, Hkv, Nk, D), with H a multiple of Hkv.
        lse: (B, H, Nq), the log-sum-exp of the rows over all keys.
        logits: the other arguments of the call that `lse` is of.
        rows: the queries, R of them; the same of every sample where `logits` has `key_rows`.
        keys: the keys, M of them.
        heads: each of these heads by itself; None is one mean over all.
        row_weights: (groups, R): sums of rows with these weights, in place of the rows.
        key_weights: (groups, M): the same of keys.

    Returns:
        (B, heads or 1, R or groups, M or groups), in the dtype of `lse`, without a graph. 0 for a row without keys.
    """
    query, key = as_autocast(query, key)
    factors, bias, group_rows = _tables(query, key, logits)
    all_heads, wide = query.shape[1], lse.dtype
    every = heads is None or list(heads) == list(range(all_heads))
    chosen = slice(None) if every else torch.tensor(list(heads or ()), device=query.device)
    query, lse = (_picked(_picked(t, 1, chosen), 2, rows) for t in (query, lse))
    key = _of_heads(_picked(key, 2, keys).to(wide), all_heads, None if every else heads)
    factor = softmax_scale(logits.scale, query)
    if isinstance(factor, Tensor):
        factor = factor if factor.dim() == 0 else _picked(factor, factor.dim() - 3, chosen)
        factor = factor.to(wide)
    mask = logits.attn_mask
    if mask is not None:
        mask = mask[(None,) * (4 - mask.dim())]
        mask = _picked(_picked(_picked(mask, 1, chosen), 2, rows), 3, keys)
    factors, bias = (None if t is None else _picked(_picked(t, 1, chosen), 3, keys) for t in (factors, bias))
    if group_rows is not None:
        assert isinstance(rows, slice) or rows.dim() == 1
        group_rows = group_rows[rows]
    of_rows, of_keys = (None if each is None else each.to(query.device, wide) for each in (row_weights, key_weights))
    found: list[Tensor] = []
    batch, counted, count = lse.shape
    block = max(1, BLOCK_SCORES // max(1, batch * counted * key.shape[2]))
    with no_autocast(query.device.type):
        for start in range(0, count, block):
            part = slice(start, start + block)
            s = (query[:, :, part].to(wide) * factor) @ key.mT
            groups = None if group_rows is None else group_rows[part]
            if factors is not None:
                s *= _table_of(factors, groups)
            if bias is not None:
                s += _table_of(bias, groups)
            if mask is not None:
                here = mask if mask.shape[2] == 1 else mask[:, :, part]
                s = s.masked_fill(~here, -math.inf) if mask.dtype == torch.bool else s + here
            of_row = lse[:, :, part, None]
            p = (s - of_row).exp_().masked_fill_(of_row == -math.inf, 0.0)
            if heads is None:
                p = p.mean(1, keepdim=True)
            if of_keys is not None:
                p = p @ of_keys.mT
            if of_rows is None:
                found.append(p)
            else:
                p = of_rows[:, part] @ p
                found = [p if not found else found[0].add_(p)]
    if not found:
        width = key.shape[2] if of_keys is None else len(of_keys)
        shape = batch, 1 if heads is None else counted, 0 if of_rows is None else len(of_rows), width
        return query.new_zeros(shape, dtype=wide)
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _tables(query: Tensor, key: Tensor, logits: Logits) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Factors and biases (B|1, H|1, groups, Nk), and the group of every query; None of it where all have the first."""
    if logits.key_scale is None and logits.key_bias is None:
        return None, None, None
    scale, bias, rows = checked_key_groups(logits.key_scale, logits.key_bias, logits.key_rows, query, key)
    if rows is None:
        return scale, bias, None
    if isinstance(rows, Tensor):
        return scale, bias, rows.to(query.device, non_blocking=True)
    # The queries outside of the range are a second group.
    scale, bias = (
        None if t is None else torch.cat([t, torch.full_like(t, neutral)], dim=2)
        for t, neutral in ((scale, 1.0), (bias, 0.0))
    )
    groups = torch.ones(query.shape[2], dtype=torch.long, device=query.device)
    groups[slice(*rows)] = 0
    return scale, bias, groups


def _table_of(table: Tensor, groups: Tensor | None) -> Tensor:
    return table if groups is None else table.index_select(2, groups)


def _of_heads(key: Tensor, heads: int, chosen: Sequence[int] | None) -> Tensor:
    """The keys of each of the query's heads, or of the chosen ones."""
    each = heads // key.shape[1]
    if chosen is not None:
        return key[:, [head // each for head in chosen]]
    return key if each == 1 else key.repeat_interleave(each, dim=1)


def _picked(t: Tensor, dim: int, tokens: Tokens) -> Tensor:
    """Some of a dimension; all of one that is broadcast."""
    if t.dim() == 4 and t.shape[dim] == 1:
        return t
    if isinstance(tokens, slice) or tokens.dim() == 1:
        return t[(slice(None),) * dim + (tokens,)]
    shape = [len(tokens), *[1] * (t.dim() - 1)]
    shape[dim] = tokens.shape[1]
    wanted = [len(tokens), *t.shape[1:]]
    index = tokens.reshape(shape).expand([*wanted[:dim], tokens.shape[1], *wanted[dim + 1 :]])
    return t.expand(wanted).gather(dim, index)
