"""Writing maps: arrays as .npz, or one number in each row of a .csv or .json table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_attn.table_files import ENDINGS, write_table

COLUMNS = ("step", "branch", "picture", "token", "row", "column", "attention")
LAYER_COLUMNS = ("layer", "head", *COLUMNS)


def save_maps(
    path: Path, maps: Mapping[int | None, np.ndarray], branches: tuple[str, ...], tokens: tuple[tuple[str, ...], ...]
) -> Path:
    """Write maps to a file.

    Args:
        path: ends in .npz, .csv or .json.
        maps: {step: (branch, image, token, row, column)}; the step None is a mean over steps, "mean" in a table.
        branches: names of the branches.
        tokens: for each image, the labels of its tokens.

    Returns:
        The path.

    Raises:
        ValueError: the path has another ending.
    """
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"branches": np.array(branches), "tokens": np.array(tokens)}
        stacked = np.stack(list(maps.values()))
        if None in maps:
            arrays["maps"] = stacked[0]
        else:
            arrays |= {"maps": stacked, "steps": np.array(list(maps))}
        np.savez_compressed(path, **arrays)
    elif path.suffix in ENDINGS:
        write_table(path, COLUMNS, _rows(maps, branches, tokens))
    else:
        raise ValueError(f"path: expected a name that ends in .npz, .csv or .json, got {str(path)!r}")
    return path


def save_layer_maps(
    path: Path,
    maps: Mapping[str, Mapping[int | None, np.ndarray]],
    heads: Sequence[int | str] | None,
    branches: tuple[str, ...],
    tokens: tuple[tuple[str, ...], ...],
) -> Path:
    """Write the maps of layers to a file.

    Args:
        path: ends in .npz, .csv or .json.
        maps: {layer: {step: (branch, image, head, token, row, column)}}; the step None is a mean over steps.
        heads: the heads' numbers, or "mean"; None is every head of a layer.
        branches: names of the branches.
        tokens: for each image, the labels of its tokens.

    Returns:
        The path.

    Raises:
        ValueError: the path has another ending.
    """
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"branches": np.array(branches), "tokens": np.array(tokens)}
        if heads is not None:
            arrays["heads"] = np.array(heads)
        for layer, by_step in maps.items():
            stacked = np.stack(list(by_step.values()))
            if None not in by_step:
                arrays["steps"] = np.array(list(by_step))
            arrays[layer] = stacked[0] if None in by_step else stacked
        np.savez_compressed(path, **arrays)
    elif path.suffix in ENDINGS:
        write_table(path, LAYER_COLUMNS, _layer_rows(maps, heads, branches, tokens))
    else:
        raise ValueError(f"path: expected a name that ends in .npz, .csv or .json, got {str(path)!r}")
    return path


def _layer_rows(
    maps: Mapping[str, Mapping[int | None, np.ndarray]],
    heads: Sequence[int | str] | None,
    branches: tuple[str, ...],
    tokens: tuple[tuple[str, ...], ...],
) -> Iterator[tuple[Any, ...]]:
    for layer, by_step in maps.items():
        for at in range(next(iter(by_step.values())).shape[2]):
            head = at if heads is None else heads[at]
            of_head = {step: values[:, :, at] for step, values in by_step.items()}
            for row in _rows(of_head, branches, tokens):
                yield layer, head, *row


def _rows(
    maps: Mapping[int | None, np.ndarray], branches: tuple[str, ...], tokens: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[Any, ...]]:
    for step, values in maps.items():
        for (branch, image, token, row, column), value in np.ndenumerate(values):
            label = tokens[image][token]
            yield "mean" if step is None else step, branches[branch], image, label, row, column, float(value)
