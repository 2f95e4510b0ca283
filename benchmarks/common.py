"""Shared by the benchmark scripts: folders, options, and files of rows. Imports neither torch nor the package."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"

Row = Mapping[str, Any]


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of a script, with its line breaks."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_csv(parser: argparse.ArgumentParser, default: Path | None = None, **more: Any) -> None:
    parser.add_argument("--csv", type=_output, default=default, **{"help": "write the rows to this file", **more})


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=_output, help="write the rows to this file as JSON")


def add_commit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commit", help="commit to name in the rows, if this folder is not a git checkout")


def positive(text: str) -> int:
    """An option's value, a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _output(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Row], fields: Sequence[str] | None = None) -> None:
    """Write a CSV file.

    Args:
        path: the file; it is replaced, and keeps its line ends.
        rows: the rows; a missing value is an empty cell.
        fields: the columns; None is those of the first row.

    Raises:
        ValueError: a row has a value that is not among `fields`.
    """
    rows, line_end = list(rows), _line_end(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = _writer(file, list(rows[0]) if fields is None else fields, line_end)
        writer.writeheader()
        writer.writerows(rows)


def replace_rows(
    path: Path,
    rows: Iterable[Row],
    fields: Sequence[str],
    names: Sequence[str],
    order: Callable[[Row], Any] = lambda row: 0,
) -> None:
    """Write rows to a CSV file in place of those with the same values of the columns `names`; other rows stay.

    Args:
        path: the file; it need not exist.
        rows: the new rows.
        fields: the columns of the file.
        names: the columns that say what a row replaces.
        order: the key by which all rows are sorted; rows with the same key keep their order, as all do without it:
            new rows are the last ones.
    """
    rows = list(rows)
    new = {tuple(str(row[name]) for name in names) for row in rows}
    kept = [row for row in read_rows(path) if tuple(row[name] for name in names) not in new]
    write_rows(path, sorted([*kept, *rows], key=order), fields)


def append_rows(path: Path, rows: Iterable[Row], fields: Sequence[str]) -> None:
    """Add rows to a CSV file; a new file gets a header first. The rows are on disk when this returns."""
    new, line_end = not path.exists(), _line_end(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = _writer(file, fields, line_end)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def write_outputs(args: argparse.Namespace, rows: Sequence[Row], fields: Sequence[str] | None = None) -> None:
    """Write the rows to the files given by `--csv` and `--json`."""
    if args.csv:
        write_rows(args.csv, rows, fields)
    if args.json:
        write_json(args.json, rows)


def write_json(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _writer(file: Any, fields: Sequence[str], line_end: str) -> Any:
    return csv.DictWriter(file, fields, lineterminator=line_end)


def _line_end(path: Path) -> str:
    """That of the file's header, so that rewriting an older file changes only what is new; a new file has "\\n"."""
    if not path.exists():
        return "\n"
    with path.open("rb") as file:
        return "\r\n" if file.readline().endswith(b"\r\n") else "\n"


def module_command(module: str, *arguments: object) -> list[str]:
    """The command line that runs a module of this repository in another process; use `ROOT` as its folder."""
    return [sys.executable, "-m", module, *map(str, arguments)]
