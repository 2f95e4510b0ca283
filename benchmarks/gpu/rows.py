"""CSV files that grow by rows, and what is in them when they are gone on with."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Row = Mapping[str, object]
CHECKS = ("part", "name", "status", "seconds", "detail")  # of checks.csv
WHOLE = "(all of it)"  # the name of a row about a part
GOOD = ("ok", "refused", "out of memory", "skipped", "passed", "not measured")  # what a status may begin with


class OtherRows(Exception):
    """The file holds rows that these do not go with."""


class Rows:
    """Each batch is on the disk when :meth:`write` returns; a line that was cut short by a kill is dropped."""

    def __init__(self, path: Path, fields: Sequence[str]):
        self.path, self.fields = path, list(fields)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        if not text.endswith(b"\n") and text:
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        if not text or text.find(b"\n") < 0:
            with path.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(self.fields)
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != self.fields:
            raise OtherRows(
                f"{path.name} has the columns {', '.join(header)}; these rows have {', '.join(self.fields)}"
            )

    def read(self) -> list[dict[str, str]]:
        return read(self.path)

    def write(self, rows: Iterable[Row]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.fields, lineterminator="\n").writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(row: Row, identity: Row) -> bool:
    """As the CSV file has them: what is None there is empty."""
    return all(str(row.get(name, "")) == ("" if value is None else str(value)) for name, value in identity.items())


def good(row: Row) -> bool:
    return str(row.get("status", "ok")).startswith(GOOD)
