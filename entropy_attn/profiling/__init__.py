"""Entropy profiles: sizes x scale policies x seeds through one pipeline, and what the measurements say. No printing."""

from __future__ import annotations

from .analysis import changes, layer_means, picture_rows, slopes, spread
from .call import profile
from .plan import ProfilePlan, Run, size_name
from .result import Profile
from .run import check_plan
from .summary import summarize

__all__ = [
    "Profile",
    "ProfilePlan",
    "Run",
    "changes",
    "check_plan",
    "layer_means",
    "picture_rows",
    "profile",
    "size_name",
    "slopes",
    "spread",
    "summarize",
]
