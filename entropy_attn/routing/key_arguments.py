"""The key groups of a policy as arguments of one attention call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_attn.ops.key_groups import checked_key_groups
from entropy_attn.scale import KeyGroups


class KeyArguments(NamedTuple):
    """Arguments of `ops.attention`."""

    key_scale: Any
    key_bias: Any
    key_rows: Any


def key_arguments(
    groups: KeyGroups, query: Tensor, key: Tensor, samples: Sequence[int] | None = None
) -> KeyArguments | None:
    """The groups on the call's device; `samples` are the rows of the batch that they are for, None for all.

    Returns None if they are for no row.
    """
    if samples is not None and not samples:
        return None
    scale, bias = (_on_device(given, query) for given in (groups.key_scale, groups.key_bias))
    if samples is None or len(samples) == len(query):
        return KeyArguments(scale, bias, groups.key_rows)
    here = torch.zeros(len(query), 1, 1, 1, dtype=torch.bool)
    here[list(samples)] = True
    here = here.to(query.device, non_blocking=True)
    of_scale, of_bias, rows = checked_key_groups(scale, bias, groups.key_rows, query, key)
    tables = [
        None if table is None else torch.where(here, table, neutral)
        for table, neutral in ((of_scale, 1.0), (of_bias, 0.0))
    ]
    if not isinstance(rows, Tensor):  # then there is one group, and no dimension for it
        tables = [None if table is None else table.squeeze(2) for table in tables]
    return KeyArguments(tables[0], tables[1], rows)


def _on_device(given: Any, query: Tensor) -> Any:
    """Tensors of a policy where the call is. Pairs may have some too."""
    if isinstance(given, Tensor):
        if given.device.type == "cpu" and not given.requires_grad:
            narrow = given.to(query.dtype)
            if torch.equal(narrow.to(given.dtype), given):  # a wider bias makes torch compute in the wider dtype
                given = narrow
        return given.to(query.device, non_blocking=True)
    if isinstance(given, (tuple, list)):
        return [
            (pair[0], pair[1].to(query.device, non_blocking=True))
            if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[1], Tensor)
            else pair
            for pair in given
        ]
    return given
