"""A tiny denoiser with random weights for every row of the table, its arguments, and what its layers attend to."""

from __future__ import annotations

from tests.support.tiny_case import TEXT, Case, Layer
from tests.support.tiny_cross import CROSS
from tests.support.tiny_joint import JOINT
from tests.support.tiny_video import VIDEO

__all__ = ["CASES", "TEXT", "Case", "Layer"]

CASES: dict[str, Case] = {**CROSS, **JOINT, **VIDEO}
