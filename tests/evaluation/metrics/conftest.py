"""Networks of random weights in folders, made once."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("transformers")

from tests.support import tiny_metrics


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    made = {"clip": tiny_metrics.make_clip, "captioner": tiny_metrics.make_captioner, "blip": tiny_metrics.make_blip_vqa,
            "vilt": tiny_metrics.make_vilt_vqa, "encoder": tiny_metrics.make_encoder}  # fmt: skip
    return {name: make(root / name) for name, make in made.items()}


@pytest.fixture
def images():
    made = [Image.new("RGB", (64, 48), color) for color in ("red", "navy", "white")]
    ImageDraw.Draw(made[0]).ellipse((10, 10, 30, 30), fill="yellow")
    return made
