"""Guidance by cross-attention maps: losses on them, and the update of the latents. Needs torch alone.

`attach(pipe, TSAM())` guides a diffusers pipeline.
"""

from __future__ import annotations

from .method import Guidance, Prompt
from .similarity import attention_similarity
from .text import real_tokens, text_self_attention
from .tsam import TSAM, tsam_loss
from .update import input_correction, step_size, update_latents

__all__ = [
    "TSAM",
    "Guidance",
    "Prompt",
    "attention_similarity",
    "input_correction",
    "real_tokens",
    "step_size",
    "text_self_attention",
    "tsam_loss",
    "update_latents",
]
