"""Writing maps: arrays as .npz, or one number in each row of a .csv or .json table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entropy_attn.table_files import ENDINGS, write_table

COLUMNS = ("step", "branch", "picture", "token", "row", "column", "attention")


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


def _rows(
    maps: Mapping[int | None, np.ndarray], branches: tuple[str, ...], tokens: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[Any, ...]]:
    for step, values in maps.items():
        for (branch, image, token, row, column), value in np.ndenumerate(values):
            label = tokens[image][token]
            yield "mean" if step is None else step, branches[branch], image, label, row, column, float(value)
