"""What mkdocs.yml adds to the pages of docs/. MkDocs calls the functions `on_...` while it builds the site.

- README.md of the repository is the first page. Files outside docs/ that a page links to become pages too, or files
  beside them, and so does what those link to: links work as on a code host, where nothing of this is needed.
- `<!-- help: profile -->` becomes the output of `entropy-attn profile --help`.
- Formulas become MathML, which browsers draw by themselves: no script, no font, no request.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
FIRST = "README.md"
OUTSIDE = "repository"  # the folder of the site for files that are not in docs/
HELP_WIDTH = 80  # columns that a page shows without scrolling
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FORMULA = re.compile(r'<(?:div|span) class="arithmatex">\\([\[(])(.*?)\\[\])]</(?:div|span)>', re.DOTALL)
LANGUAGES = {".py": "python", ".c": "c", ".toml": "toml", ".txt": "text"}  # of files that are shown as a page

_origins: dict[str, str] = {}  # page of the site -> file of the repository


def place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path == FIRST:
        return "index.md"
    if path.startswith("docs/") and not path.startswith("docs/generate/"):
        return path.removeprefix("docs/")
    return f"{OUTSIDE}/{path}" + (".md" if Path(path).suffix in LANGUAGES else "")


def links(path: str, text: str) -> Iterator[tuple[re.Match[str], str]]:
    """(link, file of the repository) for every link of a page to a file that exists."""
    for link in LINK.finditer(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1]))
        if (ROOT / target).is_dir():
            target += "/README.md"
        if not target.startswith("../") and (ROOT / target).is_file():
            yield link, target


def moved(path: str, text: str) -> str:
    """The page with links that are right where the site has it."""
    start = posixpath.dirname(place(path))
    parts, end = [], 0
    for link, target in links(path, text):
        parts += [text[end : link.start()], posixpath.relpath(place(target), start or "."), link[2] or ""]
        end = link.end()
    return "".join([*parts, text[end:]])


def on_files(files: Any, config: Any) -> Any:
    """Add the files that pages link to, and those that these link to in turn."""
    _origins.clear()
    _origins.update({file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()})
    present = {f"docs/{file.src_uri}" for file in files if file.inclusion.is_included()}
    waiting, done = [FIRST, *_origins.values(), *_in_nav(config.nav)], set[str]()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        if path not in present:
            files.append(_added(path, config))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += [target for _, target in links(path, text)]
    return files


def _in_nav(entries: Any) -> list[str]:
    """Files outside docs/ that mkdocs.yml lists."""
    if isinstance(entries, str):
        return [entries.removeprefix(f"{OUTSIDE}/")] if entries.startswith(f"{OUTSIDE}/") else []
    parts = entries.values() if isinstance(entries, dict) else entries
    return [path for part in parts for path in _in_nav(part)]


def _added(path: str, config: Any) -> File:
    suffix = Path(path).suffix
    if suffix in LANGUAGES:
        source = (ROOT / path).read_text(encoding="utf-8")
        head = f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n\n# {path}\n\n"
        return File.generated(config, place(path), content=f"{head}~~~~~~{LANGUAGES[suffix]}\n{source}\n~~~~~~\n")
    if suffix == ".md":
        _origins[place(path)] = path
    return File.generated(config, place(path), abs_src_path=str(ROOT / path))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    origin = _origins.get(page.file.src_uri)
    text = markdown if origin is None else moved(origin, markdown)
    return re.sub(r"<!-- help: ([a-z ]+) -->", lambda found: help_of(found[1]), text)


def help_of(command: str) -> str:
    """What a command says of itself, as a block of text."""
    from entropy_attn.cli import main

    before, said = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = str(HELP_WIDTH)
    try:
        with contextlib.redirect_stdout(said):
            code = main([*command.split(), "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    if code:
        raise ValueError(f"<!-- help: {command} -->: expected a command of entropy-attn, got exit code {code}")
    return f"```text\n{said.getvalue().strip()}\n```"


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas of pymdownx.arithmatex as MathML."""

    def drawn(found: re.Match[str]) -> str:
        latex = html.unescape(found[2])
        return convert(latex, display="block" if found[1] == "[" else "inline")

    return FORMULA.sub(drawn, html_text)
