"""CSV files to which rows are added, also in a later run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.common import append_rows, read_rows

Row = Mapping[str, object]
CHECKS = ("part", "name", "status", "seconds", "detail")  # columns of checks.csv
WHOLE = "(all of it)"  # the name of a row about a part
GOOD = ("ok", "refused", "out of memory", "skipped", "passed", "not measured")  # how a good status begins


class OtherRows(Exception):
    """The file has rows that do not match the new ones."""


class Rows:
    """Rows are on disk when `write` returns; an incomplete last line, left by a kill, is dropped."""

    def __init__(self, path: Path, fields: Sequence[str]):
        self.path, self.fields = path, list(fields)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            path.unlink(missing_ok=True)
            append_rows(path, [], self.fields)
        elif whole != text:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != self.fields:
            raise OtherRows(
                f"{path.name}: expected the columns {', '.join(self.fields)}, but it has {', '.join(header)}"
            )

    def read(self) -> list[dict[str, str]]:
        return read_rows(self.path)

    def write(self, rows: Iterable[Row]) -> None:
        append_rows(self.path, rows, self.fields)


def same(row: Row, identity: Row) -> bool:
    """Whether a row of the file has this identity; None is an empty cell there."""
    return all(str(row.get(name, "")) == ("" if value is None else str(value)) for name, value in identity.items())


def good(row: Row) -> bool:
    return str(row.get("status", "ok")).startswith(GOOD)
