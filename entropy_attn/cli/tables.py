"""Tables that never cut a number, at any width.

A table that is too wide is narrowed in this order: headings and names are folded where they have a seam; columns that
belong to one thing of several, such as a scale policy, become a block of their own; columns are dropped by rank, and
named below the table; and at last every row is written as lines of "title: value".
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

# After these a name may be folded, but not within a number: 0.5, -1, 1e-05, 0.8..1.5 and 2026-11-25 stay whole.
_SEAM = re.compile(r"(?<=[\s,;:/=_…])|(?<=\w-)(?![\d.-])|(?<=[^\d.]\.)(?!\.)|(?<=\d\.)(?![\d.])")
MAX_LINES = 2  # of a group's name above each of its columns; a block of its own reads better than more
_SPACE = re.compile(r"(?<=\s)")
SHOW_ALL = "a wider terminal or --json shows them"


@dataclass(frozen=True)
class Column:
    """A column of `print_table`.

    title: its heading, which may be folded at spaces and other seams.
    rank: 0 is never dropped; of the others the highest is dropped first.
    right: flush right, for numbers.
    fold: its cells are names, which may be folded at a seam. Numbers are not.
    group: what the column is of, such as the name of a policy. Where the whole does not fit, each group becomes a
        block of its own, with the columns without a group repeated.
    """

    title: str
    rank: int = 0
    right: bool = False
    fold: bool = False
    group: str | None = None


@dataclass(frozen=True)
class Block:
    """What is printed as one table: which columns, how wide; `records` where not even those fit."""

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
    """Print a table with every shown number whole.

    rows: a cell a column; None is shown as "-", and everything else by `str`.
    bold: rows, by their place, that stand out.
    show_all: what the line about dropped columns says of how to see them.
    file: where to; None is stdout.
    width: in characters; None is the terminal's, or COLUMNS where that is set, or without end for a file or a pipe.

    Raises:
        ValueError: a row has not one cell a column.
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
    """The same for {heading: rows}, which share their columns' widths and are headed once."""
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
        )  # the columns' headings come first
        for place, (heading, rows) in enumerate(parts.items()):
            if heading:
                say(f"\n{heading}", file=file, width=width)
            strong = set((bold or {}).get(heading, ()))
            if block.records:
                for line, style in _records(columns, block, rows, strong):
                    say(line, style, file=file, width=width)
            else:
                _console(file).print(_table(columns, block, rows, strong, headed=place == 0), soft_wrap=True)
        if block.dropped:
            names = ", ".join(dict.fromkeys(columns[index].title for index in block.dropped))
            say(f"Not shown at this width: {names}; {show_all}.", "dim", file=file, width=width)


def say(text: str, style: str = "", *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print text as it is, folded at spaces and other seams to `width`; file and width as in `print_table`."""
    from rich.text import Text

    file = sys.stdout if file is None else file
    for line in folded(text, output_width(file) if width is None else width):
        _console(file).print(Text(line, style), soft_wrap=True)


def _console(file: IO[str]) -> Any:
    from rich.console import Console

    return Console(file=file, highlight=False, width=10**6)  # what is laid out here is broken nowhere else


def output_width(file: IO[str]) -> int | None:
    """How wide a table may be there: None is without end."""
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
            return Block(tuple(wanted), (), group, records=True)  # which loses nothing
        kept.remove(max(ranked, key=lambda index: (columns[index].rank, index)))
    return Block(tuple(kept), widths, group, tuple(index for index in wanted if index not in kept))


def _folded_widths(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], wanted: Sequence[int], width: int
) -> tuple[int, ...] | None:
    """Widths of these columns that fit, taken from those that are the widest; None if there are none."""
    least = [_least(columns[index], _of(cells, index)) for index in wanted]
    widths = [_natural(columns[index], _of(cells, index)) for index in wanted]
    while _total(widths) > width:
        spare = [place for place in range(len(widths)) if widths[place] > least[place]]
        if not spare:
            return None
        # headings first: a name in a cell is read more often than they are
        widths[max(spare, key=lambda place: (not columns[wanted[place]].fold, widths[place]))] -= 1
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
    """The text in lines of at most `width` characters: broken at spaces, within a longer word at its seams.

    What has no seam, as a number, stays whole even where it is longer.
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
        raise ValueError(f"row={row!r}: {len(columns)} cells are needed, one a column")
    return ["-" if cell is None else str(cell) for cell in row]


def _table(columns: Sequence[Column], block: Block, rows: Sequence[list[str]], bold: set[int], headed: bool) -> Any:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    rule = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")  # a line under the headings, and nothing else
    table = Table(box=rule, show_edge=False, pad_edge=False, padding=0, show_header=headed)
    headings = []
    for index, width in zip(block.columns, block.widths, strict=True):
        above = [] if columns[index].group is None else folded(columns[index].group, width)
        headings.append([*(above if block.group is None else []), *folded(columns[index].title, width)])
    height = max(map(len, headings))
    for index, width, heading in zip(block.columns, block.widths, headings, strict=True):
        lowered = Text("\n" * (height - len(heading)) + "\n".join(heading), "bold")
        table.add_column(lowered, width=width, justify="right" if columns[index].right else "left", no_wrap=True)
    for place, row in enumerate(rows):
        cells = (
            Text("\n".join(folded(row[index], width)) if columns[index].fold else row[index])
            for index, width in zip(block.columns, block.widths, strict=True)
        )
        table.add_row(*cells, style="bold" if place in bold else "")
    return table


def _records(
    columns: Sequence[Column], block: Block, rows: Sequence[list[str]], bold: set[int]
) -> Iterator[tuple[str, str]]:
    for place, row in enumerate(rows):
        for number, index in enumerate(block.columns):
            start = "- " if number == 0 else "  "
            yield f"{start}{columns[index].title}: {row[index]}", "bold" if place in bold else ""
