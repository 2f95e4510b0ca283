"""docs/evaluate-guidance.md: the options that it names exist, and every format of prompts is described."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("diffusers")

from entropy_attn.cli import main
from entropy_attn.evaluation.prompt_sets import FORMATS
from tests.support.markdown import text_of


@pytest.mark.parametrize("page", ["docs/evaluate-guidance.md", "docs/papers.md"])
def test_options_within_the_text_exist(page, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["evaluate", "guidance", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in re.findall(r"`(--[a-z-]+)[ `]", text_of(page)):
        assert f"{option} " in shown, option


def test_every_format_is_described():
    text = text_of("docs/evaluate-guidance.md")
    assert all(f"| `{name}` |" in text for name in FORMATS)
