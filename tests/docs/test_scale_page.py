"""docs/scale.md: its table is up to date, its examples can be parsed, and it names every policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from entropy_attn import scale

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_table_is_up_to_date():
    pytest.importorskip("matplotlib")
    from benchmarks.scale.policies import with_table

    assert with_table(PAGE) == PAGE, "run: python -m benchmarks.scale.policies"


def test_every_policy_is_named():
    for name, policy in scale.POLICIES.items():
        assert f"`{policy.__name__}" in PAGE and re.search(rf"`{name}[`:]", PAGE), name


def test_examples_of_the_command_line_are_policies():
    pytest.importorskip("typer")
    from entropy_attn.cli.parsing import parse_scale

    cells = [line.split("|")[-2] for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 4]
    texts = [text for cell in cells for text in re.findall(r"`([a-z][^`…]*)`", cell)]
    texts = [text for text in texts if text.split(":")[0] in scale.POLICIES or text.endswith(".json")]
    assert len(texts) >= 10
    for text in texts:
        if "profile=" in text or text.endswith(".json"):
            with pytest.raises(ValueError, match="cannot read"):
                parse_scale(text)
        else:
            parse_scale(text)
