"""Loads a text-to-image pipeline by name, and samples from it with a scale policy and a recorder."""

from __future__ import annotations

from entropy_attn.integrations.diffusers.target import denoiser_of
from entropy_attn.integrations.guidance.attach import attach, check_guided
from entropy_attn.pipelines.loading import load_pipeline, quiet_libraries
from entropy_attn.pipelines.sampling import call_options, sample, takes_prompt
from entropy_attn.pipelines.sizes import check_size, fixed_size, size_multiple, train_size

__all__ = [
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
