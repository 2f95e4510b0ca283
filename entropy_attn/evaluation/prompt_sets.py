"""Prompts from a file, with what the file says of each: an identifier, a category, the objects, questions."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from entropy_attn.validation import require_one_of

FORMATS = ("tifa", "parti", "geneval", "lines")
TIFA_KEYS = ("id", "caption")
PARTI_COLUMN = "Prompt"


@dataclass(frozen=True)
class Item:
    """One prompt of a set.

    Attributes:
        id: its identifier, unique within the set: the file's, or its number from 0.
        text: the prompt.
        category: what the file calls its kind; empty if it says nothing.
        objects: a phrase for each object, such as ("a red bear", "a blue bird"); empty if they are not known.
    """

    id: str
    text: str
    category: str = ""
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a file.

    Attributes:
        name: the file's name without its ending.
        format: one of `FORMATS`.
        items: the prompts, in the order of the file.
        objects_from: where the objects come from, for reports; empty if no prompt has any.
    """

    name: str
    format: str
    items: tuple[Item, ...]
    objects_from: str = field(default="")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return [item.text for item in self.items]

    def first(self, total: int | None) -> PromptSet:
        """The first `total` prompts; None is all of them."""
        return self if total is None else replace(self, items=self.items[:total])


def read_prompts(path: str | Path, format: str | None = None) -> PromptSet:
    """Read a prompt set.

    Four formats are known: `tifa`, a JSON list of {"id", "caption"} (TIFA's text inputs); `parti`, tab-separated with a
    column "Prompt" (PartiPrompts); `geneval`, one JSON object a line with "prompt" and "include" (GenEval's metadata);
    and `lines`, one prompt a line.

    Args:
        path: the file, in UTF-8.
        format: one of `FORMATS`; None recognizes it by the content.

    Returns:
        The prompts.

    Raises:
        ValueError: the file is missing, empty or not in its format; the message names the line or entry.
    """
    path = Path(path)
    if format is not None:
        require_one_of("format", format, FORMATS)
    text = read_text(path)
    kind = recognize(text) if format is None else format
    items = {"tifa": _tifa, "parti": _parti, "geneval": _geneval, "lines": _lines}[kind](text, path)
    if not items:
        raise ValueError(f"{path}: expected prompts, got none")
    for identifier, count in Counter(item.id for item in items).items():
        if count > 1:
            raise ValueError(f"{path}: expected different ids, got {identifier!r} {count} times")
    known = any(item.objects for item in items)
    return PromptSet(path.stem, kind, tuple(items), f"the metadata of {path.name}" if known else "")


def recognize(text: str) -> str:
    """The format of a file's content: a JSON list, a table with a column Prompt, JSON objects, or else lines."""
    start = text.lstrip()
    if start.startswith("["):
        return "tifa"
    if start.startswith("{"):
        return "geneval"
    first = start.split("\n", 1)[0].rstrip("\r")
    return "parti" if PARTI_COLUMN in first.split("\t") and "\t" in first else "lines"


def read_objects(path: str | Path, prompts: PromptSet) -> PromptSet:
    """Add the objects of each prompt from a file, which replace those that the prompt set has.

    Args:
        path: JSON, {prompt or its id: [a phrase for each object]}.
        prompts: the prompts; each of them needs an entry, and every entry a prompt.

    Returns:
        The prompts with their objects.

    Raises:
        ValueError: the file is missing or has another form, or an entry or a prompt has no partner.
    """
    path = Path(path)
    given = parse_json(read_text(path), path)
    if not isinstance(given, dict):
        raise ValueError(f"{path}: expected a JSON object {{prompt or id: [phrases]}}, got {_kind(given)}")
    for key, phrases in given.items():
        if not _is_phrases(phrases):
            raise ValueError(f"{path}: {key!r}: expected a list of phrases, got {phrases!r}")
    used, items = set(), []
    for item in prompts.items:
        key = item.id if item.id in given else item.text
        if key not in given:
            raise ValueError(f"{path}: expected an entry for the prompt {item.text!r} (id {item.id!r}), got none")
        used.add(key)
        items.append(replace(item, objects=tuple(given[key])))
    if left := [key for key in given if key not in used]:
        raise ValueError(f"{path}: expected a prompt or id for each entry, got {left[0]!r}, which is none")
    return replace(prompts, items=tuple(items), objects_from=path.name)


def split_objects(prompts: PromptSet, words: Sequence[str]) -> PromptSet:
    """Split every prompt into its objects at the first of these words that it has, as Attend-and-Excite's code does.

    Args:
        prompts: the prompts.
        words: the words, such as ("and", "with").

    Returns:
        The prompts with their objects.

    Raises:
        ValueError: a prompt has none of the words.
    """
    items = []
    for item in prompts.items:
        word = next((word for word in words if f" {word} " in item.text), None)
        if word is None:
            raise ValueError(f"objects: expected one of {', '.join(words)} in every prompt, got {item.text!r}")
        items.append(replace(item, objects=tuple(part.strip() for part in item.text.split(f" {word} "))))
    return replace(prompts, items=tuple(items), objects_from=f"the prompt, split at {' or '.join(words)}")


def _tifa(text: str, path: Path) -> list[Item]:
    entries = parse_json(text, path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a JSON list of {{id, caption}}, got {_kind(entries)}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(not _is_text(entry.get(key)) for key in TIFA_KEYS):
            raise ValueError(f"{path}: entry {number}: expected an object with id and caption, got {entry!r}")
    # Identifiers begin with their source: coco_301091, drawbench_52.
    return [Item(entry["id"], entry["caption"], entry["id"].rpartition("_")[0]) for entry in entries]


def _parti(text: str, path: Path) -> list[Item]:
    rows = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = next(rows, [])
    if PARTI_COLUMN not in names:
        raise ValueError(f"{path}: line 1: expected tab-separated columns with {PARTI_COLUMN!r}, got {names!r}")
    items: list[Item] = []
    for number, cells in enumerate(rows, start=2):
        if not cells:
            continue
        if len(cells) != len(names):
            raise ValueError(f"{path}: line {number}: expected {len(names)} columns, got {len(cells)}")
        row = dict(zip(names, cells, strict=True))
        if not row[PARTI_COLUMN].strip():
            raise ValueError(f"{path}: line {number}: expected a prompt, got {row[PARTI_COLUMN]!r}")
        items.append(Item(str(len(items)), row[PARTI_COLUMN].strip(), row.get("Category", "")))
    return items


def _geneval(text: str, path: Path) -> list[Item]:
    items: list[Item] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        entry = parse_json(line, path, number)
        if not isinstance(entry, dict) or not _is_text(entry.get("prompt")):
            raise ValueError(f"{path}: line {number}: expected a JSON object with prompt, got {line!r}")
        objects = tuple(_phrase(each, path, number) for each in entry.get("include", ()))
        items.append(Item(str(len(items)), entry["prompt"], str(entry.get("tag", "")), objects))
    return items


def _phrase(entry: Any, path: Path, number: int) -> str:
    """ "a red bear" of {"class": "bear", "count": 1, "color": "red"}."""
    if not isinstance(entry, Mapping) or not _is_text(entry.get("class")):
        raise ValueError(f"{path}: line {number}: include: expected objects with class, got {entry!r}")
    words = [entry[key] for key in ("color", "class") if key in entry]
    article = "an" if words[0][0].lower() in "aeiou" else "a"
    return " ".join([article, *words])


def _lines(text: str, path: Path) -> list[Item]:
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    return [Item(str(number), prompt) for number, prompt in enumerate(prompts)]


def read_text(path: Path) -> str:
    """The content of a file in UTF-8.

    Raises:
        ValueError: there is no such file, or it is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got other bytes at position {error.start}") from error


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """JSON; a ValueError names the file and the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        number = error.lineno if line is None else line
        raise ValueError(f"{path}: line {number}: expected JSON, got {error.msg} at column {error.colno}") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_phrases(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _kind(value: object) -> str:
    return {"dict": "an object", "list": "a list", "str": "a text"}.get(type(value).__name__, repr(value))
