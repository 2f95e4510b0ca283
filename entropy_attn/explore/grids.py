"""Maps as text: one character for each cell, which the page takes apart again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Characters that JSON, HTML and a Vega expression in single quotes hold as they are
ALPHABET = "".join(chr(code) for code in range(33, 127) if chr(code) not in "\"'&<>\\")
LEVELS = len(ALPHABET)


def codes(values: np.ndarray) -> tuple[str, float, float]:
    """The cells of a map, row after row, and the values that the first and the last character of `ALPHABET` stand for.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("values: expected finite numbers, got NaN or infinity")
    low, high = (float(f"{value:.6g}") for value in (values.min(), values.max()))
    width = high - low or 1.0
    levels = ((values.astype(np.float64) - low) / width * (LEVELS - 1)).round().clip(0, LEVELS - 1).astype(int)
    return "".join(ALPHABET[level] for level in levels.ravel()), low, high


def pooled(values: np.ndarray, side: int) -> np.ndarray:
    """The map with at most `side` rows and columns: means over equal blocks, of which the last may be smaller."""
    rows, columns = (math.ceil(length / side) for length in values.shape)
    found = np.add.reduceat(values.astype(np.float64), np.arange(0, values.shape[0], rows), axis=0)
    found = np.add.reduceat(found, np.arange(0, values.shape[1], columns), axis=1)
    heights = np.add.reduceat(np.ones(values.shape[0]), np.arange(0, values.shape[0], rows))
    widths = np.add.reduceat(np.ones(values.shape[1]), np.arange(0, values.shape[1], columns))
    return found / np.outer(heights, widths)


def decoded(chart: Any) -> Any:
    """The chart, with a row for each cell: `value`, `row` and `column`. Filter first: this multiplies the rows."""
    return (
        chart.transform_calculate(cell_codes="split(datum.codes, '')", cell="sequence(length(datum.codes))")
        .transform_flatten(["cell_codes", "cell"])
        .transform_calculate(
            value=f"datum.low + indexof('{ALPHABET}', datum.cell_codes) / {LEVELS - 1} * (datum.high - datum.low)",
            row="floor(datum.cell / datum.columns)",
            column="datum.cell % datum.columns",
        )
    )
