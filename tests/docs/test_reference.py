"""docs/reference/ has every public name, every command and no name that does not exist."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("typer")

import entropy_attn
from tests.support.markdown import ROOT, documents, text_of

PAGES = [document for document in documents() if document.startswith("docs/reference/")]
FOUND = [entry for page in PAGES for entry in re.findall(r"^::: (\S+)\n((?: {4}.*\n)*)", text_of(page), re.MULTILINE)]
ENTRIES = [name for name, _ in FOUND]
LISTED = [line.partition("(")[0] for line in (ROOT / "tests" / "public_names.txt").read_text().splitlines()]


@functools.cache
def named(path: str) -> object:
    """The object of a dotted path: a module if there is one of this name, else an attribute."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not error.name or not path.startswith(error.name):
            raise
    owner, _, name = path.rpartition(".")
    return getattr(named(owner), name)


def public(name: str) -> object:
    """The object of a public name: an attribute first, where a module has the same name."""
    value: object = entropy_attn
    for at, part in enumerate(parts := name.split("."), start=1):
        if not hasattr(value, part):
            importlib.import_module(".".join(["entropy_attn", *parts[:at]]))
        value = getattr(value, part)
    return value


def shows(entry: str, options: str, name: str) -> bool:
    """Whether an entry shows a public name: by this or another name, as a member of its class, or of a whole module."""
    shown, value = named(entry), public(name)
    if shown is value and (callable(value) or entry == f"entropy_attn.{name}"):
        return True
    parts = name.split(".")
    owners = [".".join(parts[:end]) for end in range(1, len(parts))]
    if not any(shown is public(owner) for owner in owners):
        return False
    members = re.search(r"members: (?:false|\[(.*)\])", options)
    return parts[-1] in (members[1] or "").split(", ") if members else True


@pytest.mark.parametrize("name", LISTED)
def test_every_public_name_has_an_entry(name):
    assert any(shows(entry, options, name) for entry, options in FOUND), "add a line `::: entropy_attn...`"


def test_entries_are_found_once():
    assert len(set(ENTRIES)) == len(ENTRIES) > 50


def test_every_command_has_its_help():
    from entropy_attn.cli.app import app
    from entropy_attn.cli.evaluate import evaluate

    names = {each.callback.__name__ for each in app.registered_commands}
    names |= {f"evaluate {each.callback.__name__}" for each in evaluate.registered_commands}
    page = text_of("docs/reference/command-line.md")
    assert set(re.findall(r"<!-- help: ([a-z ]+) -->", page)) == names
    assert set(re.findall(r"^## (.*)$", page, re.MULTILINE)) == names


def test_every_page_is_in_the_list_of_the_site():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [Path(document).relative_to("docs").as_posix() for document in documents() if document.startswith("docs/")]
    missing = [page for page in pages if not re.search(rf"[-:] {re.escape(page)}\b", listed)]
    assert not missing, "add them to nav in mkdocs.yml"
