"""What an evaluation leaves to read: CSV files for programs, one Markdown page for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_attn.evaluation.statistics import Interval

DIGITS = 6  # significant digits in CSV files


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table; the columns are the keys of the first row, unless given. None is an empty cell."""
    names = list(rows[0]) if columns is None else list(columns)
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    right = [all(not isinstance(row.get(name), str) for row in rows) for name in names]
    head = ["| " + " | ".join(names) + " |", "|" + "|".join("---:" if flush else "---" for flush in right) + "|"]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in cells)])


def shown(found: Interval | None, digits: int = 3, signed: bool = False, factor: float = 1.0) -> str | None:
    """`0.50 (0.41 to 0.59)`; None where there is no value, without the interval where there is none.

    Args:
        found: mean and interval.
        digits: decimals.
        signed: with a sign, for differences.
        factor: multiplies all three, such as 100 for percent.
    """
    if found is None or math.isnan(found.mean):
        return None
    mean, low, high = (f"{value * factor:{'+' if signed else ''}.{digits}f}" for value in found)
    return mean if math.isnan(found.low) else f"{mean} ({low} to {high})"


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write rows to a CSV file, numbers with six significant digits; the file is replaced in one step."""
    import pandas as pd

    rounded = [{name: _rounded(value) for name, value in row.items()} for row in rows]
    new = path.with_name(f".{path.name}.new")
    pd.DataFrame(rounded).to_csv(new, index=False, lineterminator="\n")
    return new.replace(path)


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write a Markdown page; empty parts are left out."""
    path.write_text("\n\n".join([f"# {title}", *filter(None, parts)]) + "\n", encoding="utf-8")
    return path


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
