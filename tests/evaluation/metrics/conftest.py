"""Networks of random weights in folders, made once."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("transformers")

from tests.support import tiny_metrics


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return {name: make(root / name) for name, make in tiny_metrics.NETWORKS.items()}


@pytest.fixture
def images():
    made = [Image.new("RGB", (64, 48), color) for color in ("red", "navy", "white")]
    ImageDraw.Draw(made[0]).ellipse((10, 10, 30, 30), fill="yellow")
    return made
