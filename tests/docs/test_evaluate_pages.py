"""docs/evaluate.md names every column, and the commands of docs/evaluate.md and docs/papers.md exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("diffusers")

from entropy_attn.cli.evaluate import evaluate
from entropy_attn.evaluation import cost, scale_metrics

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluate.md").read_text(encoding="utf-8")


def test_every_column_is_explained():
    heads = " ".join(re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE))
    named = set(re.findall(r"`([^`]+)`", heads))
    assert set(scale_metrics.FIELDS) | set(cost.FIELDS) <= named


@pytest.mark.parametrize("page", ["evaluate.md", "papers.md"])
def test_commands_and_their_options_exist(page):
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line.strip()]
    options = {
        each.callback.__name__: {f"--{name.replace('_', '-')}" for name in each.callback.__annotations__}
        | {"--scale", "--scales", "--json"}
        for each in evaluate.registered_commands
    }
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[:2] == ["entropy-attn", "evaluate"] and words[2] in options
        assert {word for word in words if word.startswith("--")} <= options[words[2]], line
