"""Loading a text-to-image pipeline by name, and sampling it with a scale policy and a recorder."""

from __future__ import annotations

from ..integrations.models import denoiser_of
from .guided import attach, check_guided
from .loading import SHAPES, load_pipeline, quiet_libraries
from .sampling import call_options, sample, takes_prompt
from .sizes import check_size, fixed_size, size_multiple, train_size

__all__ = [
    "SHAPES",
    "attach",
    "call_options",
    "check_guided",
    "check_size",
    "denoiser_of",
    "fixed_size",
    "load_pipeline",
    "quiet_libraries",
    "sample",
    "size_multiple",
    "takes_prompt",
    "train_size",
]
