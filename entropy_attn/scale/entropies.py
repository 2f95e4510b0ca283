"""A recorded profile, read for what a policy needs of it: one entropy for each head of each layer."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NEEDED = ("layer", "kind", "step", "branch", "head", "seqlen_k", "mean")
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Selection:
    """Which rows of a profile count; None is all of them, of which there must be no more than one size and policy.

    relative: entropies as a part of ln N, the most that N keys allow, instead of nats.
    """

    size: str | None = None
    policy: str | None = None
    step: int | None = None
    branch: str | None = None
    relative: bool = False


@dataclass(frozen=True, repr=False)
class HeadEntropies:
    """The mean entropy of every head of the layers with image tokens among their keys, ((layer, (head, …)), …)."""

    source: str
    selection: Selection
    layers: tuple[tuple[str, tuple[float, ...]], ...]

    def __repr__(self) -> str:
        return f"<{self.source}: {len(self.layers)} layers>"


def read_entropies(profile: object, selection: Selection) -> HeadEntropies:
    """From an `EntropyRecorder`, its DataFrame, or the path of a .csv or .json that it or the command line wrote."""
    if isinstance(profile, HeadEntropies):
        if profile.selection != selection:
            raise ValueError(f"profile={profile!r} was read with {profile.selection}: give the file or recorder again")
        return profile
    source, columns = _columns(profile)
    if absent := [name for name in _NEEDED if name not in columns]:
        raise ValueError(f"profile={source}: it has no column {', '.join(map(repr, absent))}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [row for row in rows if row["kind"] != "cross"]
    if not rows:
        raise ValueError(f"profile={source}: it has no rows of self-attention or joint attention")
    for name in ("size", "policy"):
        rows = _only(rows, name, getattr(selection, name), source)
    branches = list(dict.fromkeys(row["branch"] for row in rows))
    wanted = selection.branch
    if wanted is None and "cond" in branches:
        wanted = "cond"
    if wanted is not None:
        rows = _those(rows, "branch", wanted, source)
    if selection.step is not None:
        rows = _those(rows, "step", selection.step, source)
    return HeadEntropies(source, selection, tuple(_by_layer(rows, selection.relative, source).items()))


def _columns(profile: object) -> tuple[str, Columns]:
    if hasattr(profile, "to_columns"):  # a recorder
        columns = profile.to_columns()
        if not len(columns["layer"]):
            raise ValueError(f"profile={profile!r}: nothing was recorded")
        return type(profile).__name__, columns
    if hasattr(profile, "columns") and hasattr(profile, "to_dict"):  # a DataFrame
        return type(profile).__name__, profile.to_dict("list")
    if not isinstance(profile, (str, Path)):
        raise TypeError(f"profile={profile!r}: an EntropyRecorder, its DataFrame, or the path of one saved is needed")
    path = Path(profile)
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"profile={str(path)!r}: a name that ends in .csv or .json is needed")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file)) if path.suffix == ".csv" else json.load(file)
    except OSError as error:
        raise ValueError(f"profile={str(path)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"profile={str(path)!r} is no table: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise ValueError(f"profile={str(path)!r}: it has no rows")
    return path.name, {name: [row.get(name) for row in rows] for name in rows[0]}


def _only(rows: list[dict], name: str, wanted: object, source: str) -> list[dict]:
    """Rows of one value of a column that profiles of several sizes and policies have."""
    found = list(dict.fromkeys(row.get(name) for row in rows))
    if wanted is not None:
        return _those(rows, name, wanted, source)
    if len(found) > 1:
        raise ValueError(f"profile={source} has several of {name}, {', '.join(map(str, found))}: give {name}=...")
    return rows


def _those(rows: list[dict], name: str, wanted: object, source: str) -> list[dict]:
    chosen = [row for row in rows if str(row.get(name)) == str(wanted)]
    if not chosen:
        found = ", ".join(dict.fromkeys(str(row.get(name)) for row in rows))
        raise ValueError(f"{name}={wanted!r}: profile {source} has {found}")
    return chosen


def _by_layer(rows: list[dict], relative: bool, source: str) -> dict[str, tuple[float, ...]]:
    sums: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    lengths: dict[str, int] = {}
    for row in rows:
        layer, keys, mean = row["layer"], int(row["seqlen_k"]), float(row["mean"])
        if lengths.setdefault(layer, keys) != keys:
            raise ValueError(f"profile={source}: layer {layer!r} was recorded at several sizes, {lengths[layer]} and "
                             f"{keys} keys: one is needed")  # fmt: skip
        if not math.isfinite(mean):
            raise ValueError(f"profile={source}: layer {layer!r} has an entropy of {mean}")
        sums[layer][int(row["head"])].append(mean / math.log(max(keys, 2)) if relative else mean)
    found = {}
    for layer, heads in sums.items():
        if sorted(heads) != list(range(len(heads))):
            raise ValueError(f"profile={source}: layer {layer!r} has heads {sorted(heads)}, not all from 0 on")
        found[layer] = tuple(sum(heads[head]) / len(heads[head]) for head in range(len(heads)))
    return found
