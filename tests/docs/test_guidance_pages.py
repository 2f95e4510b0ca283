"""The guidance pages: the API page agrees with the docstrings, and the code and commands of the tutorial run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

from docs.generate import guidance_api as api
from entropy_attn import guidance
from entropy_attn.cli import main

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = (DOCS / "guidance.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)


def test_the_api_page_agrees_with_the_docstrings():
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run python -m docs.generate.guidance_api"
    listed = {name for entries in api.SECTIONS.values() for name, _ in entries}
    assert set(guidance.__all__) <= listed


def test_the_tutorials_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runnable = [block for block in blocks("python") if "path/or/hub-id" not in block]
    assert len(runnable) == len(blocks("python")) - 1
    scope: dict = {}
    for block in runnable:
        block = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", block)  # the same calls with fewer steps
        exec(compile(block, "docs/guidance.md", "exec"), scope)
    assert Image.open("guidance-maps.png").width > 1000
    first, last = map(float, re.search(r"([\d.]+) -> ([\d.]+)", capsys.readouterr().out).groups())
    assert last < first


def test_the_tutorials_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("bash")
    program, *arguments = shlex.split(block.replace("\\\n", " "))
    assert program == "entropy-attn" and main([*arguments, "--steps", "2"]) == 0
    for name in re.findall(r"images/([\w-]+\.png)", TUTORIAL):
        assert (
            Image.open(name).size == Image.open(DOCS / "images" / name).size
        )  # the page shows the files that its commands write
        assert (DOCS / "images" / name).stat().st_size <= 200 * 1024


@pytest.mark.parametrize("page", ["guidance.md", "api-guidance.md"])
def test_the_readme_links_to_the_pages_and_their_links_work(page):
    assert f"(docs/{page})" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    text = (DOCS / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            target, _, _ = link.partition("#")
            assert not target or (DOCS / target).exists(), link


def test_explained_messages_exist():
    """The fixed words of each message are in the source of the package."""
    source = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "entropy_attn").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # join strings that continue on the next line
    messages = re.findall(r"^\| `([^|]*)` \|", TUTORIAL.partition("## When something is wrong")[2], re.MULTILINE)
    assert len(messages) > 8
    for message in messages:
        for part in re.split(r"\.\.\.|'[^']*'", message):
            assert part.strip(" ,:") in source, message
