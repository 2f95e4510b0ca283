"""A recorded profile, read for what a policy needs of it: one entropy for each head of each layer."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NEEDED = ("layer", "kind", "branch", "head", "seqlen_k", "mean")
_HEADS = "heads.csv"  # of a profile: the mean over steps of every head
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
    """From an `EntropyRecorder`, its DataFrame, or the path of a .csv, .csv.gz or .json that it or `profile` wrote.

    The folder of a profile, and its entropy.csv, which has no single heads, stand for the heads.csv in it.
    """
    if isinstance(profile, HeadEntropies):
        if profile.selection != selection:
            raise ValueError(f"profile={profile!r} was read with {profile.selection}: give the file or recorder again")
        return profile
    source, columns = _columns(profile)
    if selection.step is not None and "step" not in columns:
        raise ValueError(
            f"step={selection.step}: {source} has the means over all steps; `entropy-attn profile --heads` keeps every "
            "step in entropy.csv.gz"
        )
    if absent := [name for name in _NEEDED if name not in columns]:
        raise ValueError(f"profile={source}: it has no column {', '.join(map(repr, absent))}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    # "text" is what a profile calls the text that attends to itself.
    texts = _text_layers(profile)
    rows = [row for row in rows if row["kind"] not in ("cross", "text") and row["layer"] not in texts]
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
    return _read_file(Path(profile))


def _text_layers(profile: object) -> set[str]:
    """Of a recorder, the layers in which text attends to itself: no policy is asked for those."""
    if not hasattr(profile, "picture_layers"):
        return set()
    columns = profile.to_columns()
    return set(columns["layer"]) - set(profile.picture_layers())


def _read_file(path: Path) -> tuple[str, Columns]:
    path = path / _HEADS if path.is_dir() else path
    if not path.name.endswith((".csv", ".csv.gz", ".json")):
        raise ValueError(f"profile={str(path)!r}: a name that ends in .csv, .csv.gz or .json is needed")
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", newline="", encoding="utf-8") as file:
            rows = json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))
    except (OSError, EOFError) as error:
        raise ValueError(f"profile={str(path)!r} cannot be read: {getattr(error, 'strerror', 0) or error}") from error
    except ValueError as error:
        raise ValueError(f"profile={str(path)!r} is no table: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise ValueError(f"profile={str(path)!r}: it has no rows")
    if "head" not in rows[0] and "head_min" in rows[0]:
        beside = path.with_name(_HEADS)
        if not beside.is_file():
            raise ValueError(f"profile={str(path)!r} has means over heads, and there is no {_HEADS} beside it")
        return _read_file(beside)
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
