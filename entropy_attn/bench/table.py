"""Rows in CSV files, and readable names of cases."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from entropy_attn.bench.measure import FIELDS, Row


class CsvRows:
    """A CSV file to which rows are added as they are measured, so that they survive if a later case ends the run.

    Args:
        path: the file; it is replaced.
        about: what all rows have in common.
        fields: the columns.
    """

    def __init__(self, path: Path, about: Row, fields: Sequence[str] = FIELDS):
        self._file: IO[str] = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, fields, lineterminator="\n")
        self._writer.writeheader()
        self._about = about

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.writerows({**self._about, **row} for row in rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def refusals(rows: list[Row]) -> list[str]:
    """One line for each implementation and reason why it has no time."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        if "p50_ms" not in row:
            key = (str(row["implementation"]), str(row["status"]))
            found[key] = found.get(key, 0) + 1
    return [f"{name} ({count} x): {status}" for (name, status), count in found.items()]


def case_name(row: Row) -> str:
    keys = "" if row["seqlen_k"] == row["seqlen"] else f"x{row['seqlen_k']}"
    where = " ".join(str(row[name]) for name in ("model", "size", "kind") if row[name])
    shape = f"B{row['batch']} H{row['heads']} N{row['seqlen']}{keys} d{row['head_dim']} {row['dtype']}"
    return f"{where} {shape}: {row['task']}{', forward and backward' if row['pass'] == 'both' else ''}"
