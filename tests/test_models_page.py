"""docs/models.md says what the table of denoisers says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "models.py"


def test_the_page_is_up_to_date():
    pytest.importorskip("diffusers")
    written = runpy.run_path(str(SCRIPT))["page"]()
    assert SCRIPT.with_suffix(".md").read_text(encoding="utf-8") == written, "run: python docs/models.py"
