"""Tables that never truncate a number, at any width.

A table that is too wide is made narrower in this order: headings and names are wrapped where they have a seam; columns
of a group, such as those of one scale policy, become a separate block; columns are dropped by rank and named below the
table; and finally every row is written as lines of "title: value".
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

# A name can be wrapped after these, but never inside a number: 0.5, -1, 1e-05, 0.8..1.5 and 2026-11-25 stay whole.
_SEAM = re.compile(r"(?<=[\s,;:/=_…])|(?<=\w-)(?![\d.-])|(?<=[^\d.]\.)(?!\.)|(?<=\d\.)(?![\d.])")
MAX_LINES = 2  # of a group's name above each of its columns; with more, a separate block is easier to read
_SPACE = re.compile(r"(?<=\s)")
SHOW_ALL = "a wider terminal or --json shows them"


@dataclass(frozen=True)
class Column:
    """A column of `print_table`.

    Attributes:
        title: its heading, which can be wrapped at spaces and other seams.
        rank: 0 is never dropped; of the others the highest is dropped first.
        right: flush right, for numbers.
        fold: its cells are names, which can be wrapped at a seam. Numbers are not.
        group: what the column belongs to, such as the name of a policy. Where the table does not fit, each group
            becomes a separate block, and the columns without a group are repeated in each.
    """

    title: str
    rank: int = 0
    right: bool = False
    fold: bool = False
    group: str | None = None


@dataclass(frozen=True)
class Block:
    """What is printed as one table: its columns and their widths; `records` where not even those fit."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    group: str | None = None
    dropped: tuple[int, ...] = ()
    records: bool = False


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    bold: Sequence[int] = (),
    show_all: str = SHOW_ALL,
    file: IO[str] | None = None,
    width: int | None = None,
) -> None:
    """Print a table in which no number is cut.

    Args:
        columns: the columns.
        rows: one cell for each column; None is shown as "-", and everything else by `str`.
        title: printed above the table.
        bold: indices of rows that stand out.
        show_all: how to see dropped columns, for the line that names them.
        file: where to print; None is stdout.
        width: in characters; None is that of the terminal, or COLUMNS where it is set, or unlimited in a file or pipe.

    Raises:
        ValueError: the number of cells in a row is not that of the columns.
    """
    print_sections(columns, {"": rows}, title=title, bold={"": bold}, show_all=show_all, file=file, width=width)


def print_sections(
    columns: Sequence[Column],
    sections: Mapping[str, Sequence[Sequence[object]]],
    *,
    title: str = "",
    bold: Mapping[str, Sequence[int]] | None = None,
    show_all: str = SHOW_ALL,
    file: IO[str] | None = None,
    width: int | None = None,
) -> None:
    """The same for {heading: rows}: sections that share the widths of the columns and one line of headings."""
    file = sys.stdout if file is None else file
    width = output_width(file) if width is None else width
    cells = {heading: [_cells(columns, row) for row in rows] for heading, rows in sections.items()}
    if title:
        say(title, "bold", file=file, width=width)
    for block in lay_out(columns, [row for rows in cells.values() for row in rows], width):
        if block.group is not None:
            say(f"\n{block.group}", "bold", file=file, width=width)
        parts = (
            {"": [], **cells} if "" not in cells and not block.records else cells
        )  # the headings of the columns come first
        for index, (heading, rows) in enumerate(parts.items()):
            if heading:
                say(f"\n{heading}", file=file, width=width)
            strong = set((bold or {}).get(heading, ()))
            if block.records:
                for line, style in _records(columns, block, rows, strong):
                    say(line, style, file=file, width=width)
            else:
                _console(file).print(_table(columns, block, rows, strong, headed=index == 0), soft_wrap=True)
        if block.dropped:
            names = ", ".join(dict.fromkeys(columns[index].title for index in block.dropped))
            say(f"Not shown at this width: {names}; {show_all}.", "dim", file=file, width=width)


def say(text: str, style: str = "", *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print text, wrapped at spaces and other seams to `width`; file and width as in `print_table`."""
    from rich.text import Text

    file = sys.stdout if file is None else file
    for line in folded(text, output_width(file) if width is None else width):
        _console(file).print(Text(line, style), soft_wrap=True)


def _console(file: IO[str]) -> Any:
    from rich.console import Console

    return Console(file=file, highlight=False, width=10**6)  # this module wraps the lines


def output_width(file: IO[str]) -> int | None:
    """How wide a table can be there: None is unlimited."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(file.fileno()).columns or None if file.isatty() else None
    except (OSError, ValueError):  # closed, or no descriptor
        return None


def lay_out(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int | None) -> list[Block]:
    """The blocks in which these cells are printed within `width`."""
    every = tuple(range(len(columns)))
    widest = tuple(_natural(column, _of(cells, index)) for index, column in enumerate(columns))
    if width is None or _total(widest) <= width:
        return [Block(every, widest)]
    whole = _folded_widths(columns, cells, every, width)
    if whole is not None and all(
        len(folded(column.group or "", length)) <= MAX_LINES for column, length in zip(columns, whole, strict=True)
    ):
        return [Block(every, whole)]
    groups = dict.fromkeys(column.group for column in columns if column.group is not None)
    if not groups:
        return [_narrowed(columns, cells, every, None, width)]
    alone = [replace(column, group=None) for column in columns]  # the group is the block's heading
    return [
        _narrowed(alone, cells, [index for index in every if columns[index].group in (None, group)], group, width)
        for group in groups
    ]


def _narrowed(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], wanted: Sequence[int], group: str | None, width: int
) -> Block:
    kept = list(wanted)
    while (widths := _folded_widths(columns, cells, kept, width)) is None:
        ranked = [index for index in kept if columns[index].rank > 0]
        if not ranked:
            return Block(tuple(wanted), (), group, records=True)  # nothing is lost in these
        kept.remove(max(ranked, key=lambda index: (columns[index].rank, index)))
    return Block(tuple(kept), widths, group, tuple(index for index in wanted if index not in kept))


def _folded_widths(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], wanted: Sequence[int], width: int
) -> tuple[int, ...] | None:
    """Widths with which these columns fit, taken from the widest ones; None if there are none."""
    least = [_least(columns[index], _of(cells, index)) for index in wanted]
    widths = [_natural(columns[index], _of(cells, index)) for index in wanted]
    while _total(widths) > width:
        spare = [at for at in range(len(widths)) if widths[at] > least[at]]
        if not spare:
            return None
        # Headings first: names in cells are read more often
        widths[max(spare, key=lambda at: (not columns[wanted[at]].fold, widths[at]))] -= 1
    return tuple(widths)


def _of(cells: Sequence[Sequence[str]], index: int) -> list[str]:
    return [row[index] for row in cells]


def _natural(column: Column, cells: Sequence[str]) -> int:
    return max(map(_length, (column.title, column.group or "", *cells)))


def _least(column: Column, cells: Sequence[str]) -> int:
    headings = map(_piece, (column.title, column.group or ""))
    return max(*headings, *map(_piece if column.fold else _length, cells))


def _piece(text: str) -> int:
    return max((_length(piece.rstrip()) for piece in _SEAM.split(text)), default=0)


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * max(len(widths) - 1, 0)


def folded(text: str, width: int | None) -> list[str]:
    """The text in lines of at most `width` characters, wrapped at spaces, and longer words after punctuation.

    A piece that cannot be wrapped, such as a number, is not cut even if it is longer.
    """
    lines = []
    for line in text.split("\n"):
        now = ""
        for word in _SPACE.split(line):
            whole = width is None or _length(word.rstrip()) <= width
            for piece in [word] if whole else _SEAM.split(word):
                if width is not None and now and _length(now + piece.rstrip()) > width:
                    lines.append(now.rstrip())
                    now = piece.lstrip()
                else:
                    now += piece
        lines.append(now.rstrip())
    return lines


def _cells(columns: Sequence[Column], row: Sequence[object]) -> list[str]:
    if len(row) != len(columns):
        raise ValueError(f"row: expected {len(columns)} cells, one for each column, got {row!r}")
    return ["-" if cell is None else str(cell) for cell in row]


def _table(columns: Sequence[Column], block: Block, rows: Sequence[list[str]], bold: set[int], headed: bool) -> Any:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    rule = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")  # a line under the headings, and nothing else
    table = Table(box=rule, show_edge=False, pad_edge=False, padding=0, show_header=headed)
    headings = []
    for index, width in zip(block.columns, block.widths, strict=True):
        group = columns[index].group
        above = [] if group is None else folded(group, width)
        headings.append([*(above if block.group is None else []), *folded(columns[index].title, width)])
    height = max(map(len, headings))
    for index, width, heading in zip(block.columns, block.widths, headings, strict=True):
        lowered = Text("\n" * (height - len(heading)) + "\n".join(heading), "bold")
        table.add_column(lowered, width=width, justify="right" if columns[index].right else "left", no_wrap=True)
    for at, row in enumerate(rows):
        cells = (
            Text("\n".join(folded(row[index], width)) if columns[index].fold else row[index])
            for index, width in zip(block.columns, block.widths, strict=True)
        )
        table.add_row(*cells, style="bold" if at in bold else "")
    return table


def _records(
    columns: Sequence[Column], block: Block, rows: Sequence[list[str]], bold: set[int]
) -> Iterator[tuple[str, str]]:
    for at, row in enumerate(rows):
        for number, index in enumerate(block.columns):
            start = "- " if number == 0 else "  "
            yield f"{start}{columns[index].title}: {row[index]}", "bold" if at in bold else ""
