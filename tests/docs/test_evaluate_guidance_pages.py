"""The pages of `evaluate guidance`: their commands have options and methods that exist."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from entropy_attn.cli import main
from entropy_attn.cli.parsing import parse_method
from entropy_attn.evaluation.prompt_sets import FORMATS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("evaluate-guidance.md", "papers.md")


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_options_and_methods_that_exist(page, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["evaluate", "guidance", "--help"]) == 0
    shown = capsys.readouterr().out
    given = [words for words in commands(page) if words[:3] == ["entropy-attn", "evaluate", "guidance"]]
    assert given
    for words in given:
        for word in words:
            assert not word.startswith("--") or f"{word} " in shown, word
        for option, value in itertools.pairwise(words):
            if option == "--guidance":
                parse_method(value)
    text = (DOCS / page).read_text(encoding="utf-8")
    for option in re.findall(r"`(--[a-z-]+)[ `]", text):
        assert f"{option} " in shown, option


def test_every_format_is_described():
    text = (DOCS / PAGES[0]).read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in FORMATS)
