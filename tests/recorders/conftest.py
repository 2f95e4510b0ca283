"""Recorders are tested on tiny pipelines with random weights; these tests need diffusers."""

import pytest

pytest.importorskip("diffusers")

from tests.support.tiny_fixtures import pipe, unet

__all__ = ["pipe", "unet"]
