"""docs/models.md agrees with the table of denoisers."""

from __future__ import annotations

from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_up_to_date():
    pytest.importorskip("diffusers")
    from docs.generate.models import page

    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.generate.models"
