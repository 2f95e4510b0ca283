"""Tables as files: .csv, or .json with a list of one object for each row. Needs no pandas."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ENDINGS = (".csv", ".json")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table, replacing the file.

    Args:
        path: ends in .csv or .json.
        columns: their names.
        rows: the values of each row, in the order of the columns.

    Returns:
        The path.

    Raises:
        ValueError: the path has another ending.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"path: expected a name that ends in {' or '.join(ENDINGS)}, got {str(path)!r}")
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        else:
            json.dump([dict(zip(columns, row, strict=True)) for row in rows], file, indent=1)
    return path
