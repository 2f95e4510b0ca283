"""Reads a recorded profile into one entropy per head of each layer."""

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

from entropy_attn.validation import expected

_NEEDED = ("layer", "kind", "branch", "head", "seqlen_k", "mean")
_HEADS = "heads.csv"  # in a profile's folder: the mean over steps of every head
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Selection:
    """Which rows of a profile to read; None is all of them, where the profile has one size and one policy only.

    `relative` divides entropies by ln Nk, the maximum for Nk keys, instead of nats.
    """

    size: str | None = None
    policy: str | None = None
    step: int | None = None
    branch: str | None = None
    relative: bool = False


@dataclass(frozen=True, repr=False)
class HeadEntropies:
    """The mean entropy of every head of the layers with image keys: ((layer, (entropy of head 0, …)), …)."""

    source: str
    selection: Selection
    layers: tuple[tuple[str, tuple[float, ...]], ...]

    def __repr__(self) -> str:
        return f"<{self.source}: {len(self.layers)} layers>"


def read_entropies(profile: object, selection: Selection) -> HeadEntropies:
    """Read an `EntropyRecorder`, its DataFrame, or a .csv, .csv.gz or .json file that it or `profile` wrote.

    For a profile's folder, or its entropy.csv, which is averaged over heads, the heads.csv beside it is read.
    """
    if isinstance(profile, HeadEntropies):
        if profile.selection != selection:
            raise ValueError(
                f"profile: expected the file or recorder again, got {profile!r} as read with {profile.selection}"
            )
        return profile
    source, columns = _columns(profile)
    if selection.step is not None and "step" not in columns:
        raise ValueError(
            f"step: expected None, because {source} has only means over all steps, got {selection.step}; "
            "`entropy-attn profile --heads` keeps every step in entropy.csv.gz"
        )
    if absent := [name for name in _NEEDED if name not in columns]:
        raise ValueError(f"profile: expected a table with the column {', '.join(map(repr, absent))}, got {source}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    # A profile marks text that attends to itself with the kind "text".
    texts = _text_layers(profile)
    rows = [row for row in rows if row["kind"] not in ("cross", "text") and row["layer"] not in texts]
    if not rows:
        raise ValueError(f"profile: expected rows of self-attention or joint attention, got none in {source}")
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


def _columns(profile: Any) -> tuple[str, Columns]:
    if hasattr(profile, "to_columns"):  # a recorder
        columns = profile.to_columns()
        if not len(columns["layer"]):
            raise ValueError(f"profile: expected at least one recorded call, got {profile!r}")
        return type(profile).__name__, columns
    if hasattr(profile, "columns") and hasattr(profile, "to_dict"):  # a DataFrame
        return type(profile).__name__, profile.to_dict("list")
    if not isinstance(profile, (str, Path)):
        raise TypeError(expected("profile", "an EntropyRecorder, its DataFrame or the path of a saved one", profile))
    return _read_file(Path(profile))


def _text_layers(profile: Any) -> set[str]:
    """The layers of a recorder in which text attends to itself: no policy is called for them."""
    if not hasattr(profile, "picture_layers"):
        return set()
    columns = profile.to_columns()
    return set(columns["layer"]) - set(profile.picture_layers())


def _read_file(path: Path) -> tuple[str, Columns]:
    path = path / _HEADS if path.is_dir() else path
    if not path.name.endswith((".csv", ".csv.gz", ".json")):
        raise ValueError(expected("profile", "a folder or a file .csv, .csv.gz or .json", str(path)))
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", newline="", encoding="utf-8") as file:
            rows = json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))
    except (OSError, EOFError) as error:
        raise ValueError(f"profile: cannot read {str(path)!r}: {getattr(error, 'strerror', 0) or error}") from error
    except ValueError as error:
        raise ValueError(f"profile: expected a table, got {str(path)!r}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise ValueError(f"profile: expected at least one row, got none in {str(path)!r}")
    if "head" not in rows[0] and "head_min" in rows[0]:
        beside = path.with_name(_HEADS)
        if not beside.is_file():
            raise ValueError(
                f"profile: expected {_HEADS} beside {str(path)!r}, which has means over heads, got no such file"
            )
        return _read_file(beside)
    return path.name, {name: [row.get(name) for row in rows] for name in rows[0]}


def _only(rows: list[dict[str, Any]], name: str, wanted: object, source: str) -> list[dict[str, Any]]:
    """The rows with one value of a column that a profile of several sizes and policies has."""
    found = list(dict.fromkeys(row.get(name) for row in rows))
    if wanted is not None:
        return _those(rows, name, wanted, source)
    if len(found) > 1:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, found))}, which profile {source} has, got None")
    return rows


def _those(rows: list[dict[str, Any]], name: str, wanted: object, source: str) -> list[dict[str, Any]]:
    chosen = [row for row in rows if str(row.get(name)) == str(wanted)]
    if not chosen:
        found = ", ".join(dict.fromkeys(str(row.get(name)) for row in rows))
        raise ValueError(expected(name, f"one of {found}, which profile {source} has", wanted))
    return chosen


def _by_layer(rows: list[dict[str, Any]], relative: bool, source: str) -> dict[str, tuple[float, ...]]:
    sums: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    lengths: dict[str, int] = {}
    for row in rows:
        layer, keys, mean = row["layer"], int(row["seqlen_k"]), float(row["mean"])
        if lengths.setdefault(layer, keys) != keys:
            raise ValueError(
                f"profile: expected one size of layer {layer!r}, got {lengths[layer]} and {keys} keys in {source}"
            )
        if not math.isfinite(mean):
            raise ValueError(f"profile: expected finite entropies, got {mean} for layer {layer!r} in {source}")
        sums[layer][int(row["head"])].append(mean / math.log(max(keys, 2)) if relative else mean)
    found = {}
    for layer, heads in sums.items():
        if sorted(heads) != list(range(len(heads))):
            raise ValueError(f"profile: expected heads 0, 1, … of layer {layer!r}, got {sorted(heads)} in {source}")
        found[layer] = tuple(sum(heads[head]) / len(heads[head]) for head in range(len(heads)))
    return found
