"""Writing maps: arrays as .npz, or one number a line as .csv or .json."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

COLUMNS = ("step", "branch", "picture", "token", "row", "column", "attention")


def save_maps(
    path: Path, maps: Mapping[int | None, np.ndarray], branches: tuple[str, ...], tokens: tuple[tuple[str, ...], ...]
) -> Path:
    """Write {step: (branch, picture, token, row, column)}; the step None is a mean over steps, "mean" in a table.

    tokens: the labels of every picture.
    """
    if path.suffix == ".npz":
        steps = {} if None in maps else {"steps": np.array(list(maps))}
        stacked = np.stack(list(maps.values()))
        np.savez_compressed(
            path, maps=stacked if steps else stacked[0], branches=np.array(branches), tokens=np.array(tokens), **steps
        )
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_rows(maps, branches, tokens))
    elif path.suffix == ".json":
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in _rows(maps, branches, tokens)]
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        raise ValueError(f"path={str(path)!r}: a name that ends in .npz, .csv or .json is needed")
    return path


def _rows(
    maps: Mapping[int | None, np.ndarray], branches: tuple[str, ...], tokens: tuple[tuple[str, ...], ...]
) -> Iterator[tuple]:
    for step, values in maps.items():
        for (branch, picture, token, row, column), value in np.ndenumerate(values):
            label = tokens[picture][token]
            yield "mean" if step is None else step, branches[branch], picture, label, row, column, float(value)
