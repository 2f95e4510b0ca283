"""HTML for notebooks, which `_repr_html_` of recorders, handles and policies return."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

MAX_ROWS = 40
MAX_TEXT = 200  # characters of one value

# A policy may hold a whole profile: what is cut is not written out first.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = MAX_TEXT
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = 8


class Html(str):
    """Markup, which `table` does not escape."""


def table(title: str, rows: Iterable[Mapping[str, Any]], note: str = "") -> str:
    """A title, a note below it and a table.

    Args:
        title: of the object.
        rows: {column: value} with the same columns in each; no more than `MAX_ROWS` are shown. Floats get four digits.
        note: what the table cannot say.

    Returns:
        One HTML element without scripts, styles of its own or references.
    """
    rows = list(rows)
    parts = [f"<b>{escape(title)}</b>"]
    if note:
        parts.append(f"<div>{escape(note)}</div>")
    if rows:
        heads = "".join(f"<th>{escape(str(column))}</th>" for column in rows[0])
        lines = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows[:MAX_ROWS])
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>")
    if len(rows) > MAX_ROWS:
        parts.append(f"<div>and {len(rows) - MAX_ROWS} more rows</div>")
    return f"<div>{''.join(parts)}</div>"


def facts(title: str, values: Mapping[str, Any], note: str = "") -> str:
    """The same with a row for each name and value.

    Args:
        title: of the object.
        values: {name: value}.
        note: what the table cannot say.

    Returns:
        One HTML element.
    """
    return table(title, [{"": name, "value": value} for name, value in values.items()], note)


def _cell(value: Any) -> str:
    if isinstance(value, Html):
        return f"<td>{value}</td>"
    if isinstance(value, float):
        return f"<td>{value:.4g}</td>"
    text = value if isinstance(value, str) else _SHORT.repr(value)
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + "…"
    return f'<td style="text-align:left">{escape(text)}</td>' if not isinstance(value, int) else f"<td>{text}</td>"


class Settings:
    """Base class of the dataclasses of settings, policies and guidances: a notebook shows a row for each setting."""

    def _repr_html_(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # of the subclass
        values = {field.name: _shown(getattr(self, field.name)) for field in fields}
        return facts(type(self).__name__, values, _summary(type(self)))


def _shown(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else _SHORT.repr(value)


def _summary(cls: type) -> str:
    """The first line of the docstring; none for the one that `dataclass` makes."""
    text = (cls.__doc__ or "").strip().split("\n")[0]
    return "" if text.startswith(f"{cls.__name__}(") else text
