"""The tutorial of guidance: its code and commands run, and the messages that it explains exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

from entropy_attn.cli import main
from tests.support.documented import run_blocks
from tests.support.markdown import blocks
from tests.support.saved_models import tiny_model

__all__ = ["tiny_model"]

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = (DOCS / "guidance.md").read_text(encoding="utf-8")


def test_the_tutorials_code_runs(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/guidance.md", tiny_model)
    assert Image.open("guidance-maps.png").width > 1000
    first, last = map(float, re.search(r"([\d.]+) -> ([\d.]+)", capsys.readouterr().out).groups())
    assert last < first


def test_the_tutorials_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("docs/guidance.md", "bash")
    program, *arguments = shlex.split(block.text.replace("\\\n", " "))
    assert program == "entropy-attn" and main([*arguments, "--steps", "2"]) == 0
    for name in re.findall(r"images/([\w-]+\.png)", TUTORIAL):
        assert (
            Image.open(name).size == Image.open(DOCS / "images" / name).size
        )  # the page shows the files that its commands write
        assert (DOCS / "images" / name).stat().st_size <= 200 * 1024


def test_explained_messages_exist():
    """The fixed words of each message are in the source of the package."""
    source = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "entropy_attn").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # join strings that continue on the next line
    messages = re.findall(r"^\| `([^|]*)` \|", TUTORIAL.partition("## When something is wrong")[2], re.MULTILINE)
    assert len(messages) > 8
    for message in messages:
        for part in re.split(r"\.\.\.|'[^']*'", message):
            assert part.strip(" ,:") in source, message
