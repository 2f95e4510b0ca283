"""`--help` that truncates nothing: text is wrapped to the terminal, and examples can be copied at any width."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from entropy_attn.cli.tables import folded, output_width

USUAL, WIDEST = 80, 100  # columns: in a pipe, and at most
NARROW = 72  # in fewer columns an option gets a separate line, and its text the whole width
MAX_OPTION = 26  # columns for the names of options; a longer name gets a separate line
# A word of a shell with its quotes, or an option together with its value
_WORD = re.compile(r'(?:--?\w[\w-]* (?!-))?(?:"[^"]*"|\S)+')


class Command(TyperCommand):
    """A command whose help is laid out by this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_lines(self, ctx)) + "\n")


class Group(TyperGroup):
    """The command that contains the others, with the same layout."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_lines(self, ctx)) + "\n")


def _lines(command: Any, ctx: Any) -> Iterator[str]:
    width = min(output_width(sys.stdout) or USUAL, WIDEST)
    yield from _indented(f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}", width, 0, 4)
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield ""
        example = paragraph.startswith(" ")
        yield from _example(paragraph, width) if example else _indented(" ".join(paragraph.split()), width, 2)
    records = [record for record in (param.get_help_record(ctx) for param in command.get_params(ctx)) if record]
    yield from _section("Options", records, width)
    if isinstance(command, Group):
        subcommands = ((name, command.get_command(ctx, name)) for name in command.list_commands(ctx))
        records = [
            (name, (each.help or "").strip().partition("\n\n")[0])
            for name, each in subcommands
            if each is not None and not each.hidden
        ]
        yield from _section("Commands", records, width)


def _section(title: str, records: list[tuple[str, str]], width: int) -> Iterator[str]:
    yield from ("", f"{title}:")
    names = min(max((len(name) for name, _ in records), default=0), MAX_OPTION)
    for name, text in records:
        beside = width >= NARROW and len(name) <= names
        lines = list(_indented(" ".join(text.split()), width, names + 4 if width >= NARROW else 6))
        yield f"  {name}".ljust(names + 4) + lines.pop(0).strip() if beside else f"  {name}"
        yield from lines


def _indented(text: str, width: int, first: int, later: int | None = None) -> Iterator[str]:
    later = first if later is None else later
    for index, line in enumerate(folded(text, max(width - max(first, later), 1))):
        yield (" " * (later if index else first) + line).rstrip()


def _example(text: str, width: int) -> Iterator[str]:
    """A command line, with a backslash at the end of every line but the last."""
    for line in text.splitlines():
        parts = [""]
        for word in _WORD.findall(line):
            if parts[-1] and len(f"{parts[-1]} {word}") > width - 8:
                parts.append(word)
            else:
                parts[-1] = f"{parts[-1]} {word}".strip()
        for index, part in enumerate(parts):
            yield ("      " if index else "  ") + part + (" \\" if index < len(parts) - 1 else "")
