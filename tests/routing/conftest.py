"""Routing is tested on tiny random-weight pipelines; there is nothing to test without diffusers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

from .tiny_models import FAMILIES, make_pipe, make_unet


@pytest.fixture(params=sorted(FAMILIES))
def pipe(request: pytest.FixtureRequest) -> Any:
    return make_pipe(request.param)


@pytest.fixture
def unet() -> Any:
    return make_unet()
