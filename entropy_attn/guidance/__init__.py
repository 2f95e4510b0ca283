"""Guidance by cross-attention maps: losses on them, and the update of the latents. Needs torch alone.

`attach(pipe, TSAM())` guides a diffusers pipeline.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .compared import CONFORM, AttendAndExcite, SynGen
from .method import Custom, Guidance, Prompt
from .similarity import attention_similarity
from .text import real_tokens, text_self_attention
from .tsam import TSAM, tsam_loss
from .update import input_correction, step_size, update_latents

if TYPE_CHECKING:
    from ..pipelines.guided import attach as attach

__all__ = [
    "CONFORM",
    "TSAM",
    "AttendAndExcite",
    "Custom",
    "Guidance",
    "Prompt",
    "SynGen",
    "attach",
    "attention_similarity",
    "input_correction",
    "real_tokens",
    "step_size",
    "text_self_attention",
    "tsam_loss",
    "update_latents",
]


def __getattr__(name: str) -> object:
    # Its name is here, where it is looked for; it lies above, with the pipelines, and needs diffusers.
    if name != "attach":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("entropy_attn.pipelines.guided").attach
