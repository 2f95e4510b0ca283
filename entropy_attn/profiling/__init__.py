"""Entropy profiles: run sizes x scale policies x seeds through one pipeline, and summarize the measurements."""

from __future__ import annotations

from entropy_attn.profiling.analysis import changes, layer_means, picture_rows, slopes, spread
from entropy_attn.profiling.call import profile
from entropy_attn.profiling.plan import ProfilePlan, Run, size_name
from entropy_attn.profiling.result import Profile
from entropy_attn.profiling.run import check_plan
from entropy_attn.profiling.summary import summarize

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
