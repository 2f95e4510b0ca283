"""The built site: its links lead somewhere, it has every public name, and it asks no other machine for anything.

`make docs` builds the site and runs these tests; `make test` leaves them out.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.browser import Browser, executable

pytest.importorskip("mkdocs")

from mkdocstrings import Inventory

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
if not (SITE / "index.html").is_file():
    pytest.skip("no site: make docs builds it", allow_module_level=True)
LISTED = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").splitlines()
with (SITE / "objects.inv").open("rb") as file:
    SHOWN = Inventory.parse_sphinx(file)
# What a page requests by itself
LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "object": "data"}


class Page(HTMLParser):
    """The links, ids and requests of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href", ""))
        elif LOADS.get(tag) in given:
            self.loads.append(given[LOADS[tag]])


PAGES = {path: Page(path) for path in sorted(SITE.rglob("*.html")) if path.name != "404.html"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(SITE).as_posix())
def test_links_lead_somewhere(path):
    for link in PAGES[path].links + PAGES[path].loads:
        target, _, anchor = unquote(link).partition("#")
        if re.match(r"\w+:", target) or target == "." or target.startswith("?"):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.is_file() and file.is_relative_to(SITE), link
        assert not anchor or file.suffix != ".html" or anchor.startswith("__") or anchor in PAGES[file].ids, link


def test_nothing_is_loaded_from_elsewhere():
    for path, page in PAGES.items():
        assert not [load for load in page.loads if re.match(r"(https?:)?//", load)], path
    for path in SITE.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("line", LISTED)
def test_every_public_name_is_shown(line):
    """What can be called is shown as that, and not as a module of the same name, in which it may lie."""
    name, takes, _ = line.partition("(")
    within = f"entropy_attn.{name}.{name.rpartition('.')[2]}"
    shown = SHOWN[within if within in SHOWN else f"entropy_attn.{name}"]
    assert not takes or shown.role in ("function", "class", "method")


def test_formulas_are_drawn():
    for name in ("theory.html", "repository/kernels/index.html"):
        text = (SITE / name).read_text(encoding="utf-8")
        assert text.count("<math") >= 4
    assert not [path for path in PAGES if 'class="arithmatex"' in path.read_text(encoding="utf-8")]


def test_lists_and_tables_are_lists_and_tables():
    """Python's Markdown is stricter than that of code hosts: without an empty line before it, a list is text."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        article = text.partition("<article")[2].partition("</article>")[0]
        article = re.sub(r"<pre.*?</pre>", "", article, flags=re.DOTALL)
        assert not re.findall(r"<p>(?:(?!</p>).)*\n *(?:[-*]|1\.) (?:(?!</p>).)*</p>", article, re.DOTALL), path
        assert not re.findall(r"<p>\|", article), path


def test_help_texts_are_there():
    text = (SITE / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert text.count("Usage: entropy-attn") == 9 and "<!-- help" not in text


@pytest.mark.skipif(executable() is None, reason="needs Chromium")
def test_a_browser_shows_it_without_a_request_and_without_an_error(tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        for name in ("index.html", "scale.html", "theory.html", "reference/guidance.html", "how-to/ignored-words.html"):
            browser.open(SITE / name, "document.readyState == 'complete' && document.querySelector('h1')")
            broken = "[...document.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src)"
            assert browser.evaluate(broken) == []
            assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert not [each for each in browser.requests if not each.startswith(("file:", "data:", "blob:", "about:"))]
        assert not browser.problems
    finally:
        browser.close()
