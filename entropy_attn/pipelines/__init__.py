"""Loading a text-to-image pipeline by name, and sampling it with a scale policy and a recorder."""

from __future__ import annotations

from .guided import attach, check_guided
from .loading import SHAPES, check_size, load_pipeline, quiet_libraries, size_multiple, train_size
from .sampling import sample

__all__ = [
    "SHAPES",
    "attach",
    "check_guided",
    "check_size",
    "load_pipeline",
    "quiet_libraries",
    "sample",
    "size_multiple",
    "train_size",
]
