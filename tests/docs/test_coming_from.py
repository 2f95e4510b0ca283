"""The page for users of other tools: our side of each comparison runs, and gives what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
TOOLS = {"DAAM": "daam", "attention-map-diffusers": "attention_map_diffusers", "AttLine": "attline"}


@pytest.mark.parametrize("name", TOOLS)
def test_our_side_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs, ours = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert f"from {TOOLS[name]} import" in theirs and "import entropy_attn as ea" in ours
    compile(theirs, name, "exec")
    scope: dict = {}
    exec(compile(ours, "docs/coming-from.md", "exec"), scope)
    maps = scope["maps"]
    if name == "DAAM":
        assert Image.open("circle.png").size == scope["image"].size
        found = maps.heat_map("circle", size=(scope["image"].height, scope["image"].width))
        assert found.shape == (64, 64) and 0 <= found.min() and found.max() <= 1
    elif name == "AttLine":
        assert {path.name for path in tmp_path.iterdir()} == {"circle_overlay.png", "blue square_overlay.png"}
        assert len(maps.positions[1]) == 2
    else:
        kept = np.load("maps.npz")
        assert maps.recorded_steps == (3,) and kept["maps"].shape[-2:] == maps.map_size
        assert Image.open("maps.png").width > 100
