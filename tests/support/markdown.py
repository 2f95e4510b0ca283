"""Reads the Markdown files of the repository: headings, links, blocks of code, command lines."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "docs", "entropy_attn", "examples", "kernels", "notebooks", "tests")  # not .venv, not site
PARSER = MarkdownIt("commonmark").enable("table")
SHELL = ("bash", "sh", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and where it is, for messages."""

    language: str
    text: str
    place: str


def documents() -> list[str]:
    """Paths of all Markdown files, from the root of the repository."""
    found = {*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))}
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def anchors(document: str) -> set[str]:
    """What a link can have after its #: headings as code hosts name them, and ids in HTML."""
    tokens, text = _tokens(document), text_of(document)
    titles = ["".join(part.content for part in after.children or () if part.type in ("text", "code_inline"))
              for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]  # fmt: skip
    return {slug(title) for title in titles} | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def links(document: str) -> list[str]:
    """Targets of all links and images."""
    inline = [part for token in _tokens(document) for part in token.children or ()]
    found = [part.attrGet("href") or part.attrGet("src") for part in inline if part.type in ("link_open", "image")]
    return [unquote(str(target)) for target in found if target]


def blocks(document: str, *languages: str) -> list[Block]:
    """The blocks of code in these languages."""
    return [
        Block(language, token.content, f"{document}:{token.map[0] + 2}")
        for token in _tokens(document)
        if token.type == "fence" and token.map and (language := token.info.split(" ")[0]) in languages
    ]


def commands(document: str) -> Iterator[tuple[str, list[str]]]:
    """(place, words) of every command line in the blocks for a shell; variables before a command are dropped."""
    for block in blocks(document, *SHELL):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                while command and re.match(r"[A-Z_]+=", command[0]):
                    command = command[1:]
                if command:
                    yield block.place, command


def inline_code(document: str) -> list[str]:
    """Code within a line of text."""
    inline = [part for token in _tokens(document) for part in token.children or ()]
    return [part.content for part in inline if part.type == "code_inline"]


def tables(document: str) -> Iterator[tuple[str, list[list[str]]]]:
    """(the heading above it, rows of cells as they are written) of every table, without its first row."""
    title, row, rows = "", [], []
    tokens = _tokens(document)
    for token, after in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == "heading_open":
            title = after.content
        elif token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            row = []
        elif token.type in ("td_open", "th_open"):
            row.append(after.content)
        elif token.type == "tr_close":
            rows.append(row)
        elif token.type == "table_close":
            yield title, rows[1:]


def _tokens(document: str) -> list[Token]:
    return PARSER.parse(text_of(document))
