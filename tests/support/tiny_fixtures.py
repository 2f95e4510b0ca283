"""Fixtures on tiny pipelines with random weights; a folder's conftest.py imports those that its tests use."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.tiny_models import FAMILIES, make_pipe, make_unet


@pytest.fixture(params=sorted(FAMILIES))
def pipe(request: pytest.FixtureRequest) -> Any:
    return make_pipe(request.param)


@pytest.fixture
def unet() -> Any:
    return make_unet()
