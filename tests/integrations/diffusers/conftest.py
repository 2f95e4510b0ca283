"""The pipeline of the embedded model, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import pytest

import entropy_attn as ea


@pytest.fixture(scope="module")
def shapes() -> Any:
    pipe = ea.shapes.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe
