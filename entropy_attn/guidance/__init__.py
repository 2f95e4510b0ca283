"""Guidance by cross-attention maps: losses on the maps, and the update of the latents. Needs only torch.

`attach(pipe, TSAM())` guides a diffusers pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_attn.guidance.compared import CONFORM, AttendAndExcite, SynGen
from entropy_attn.guidance.controls import RandomDirection
from entropy_attn.guidance.jedi import JEDI
from entropy_attn.guidance.method import Custom, Guidance, Prompt
from entropy_attn.guidance.similarity import attention_similarity
from entropy_attn.guidance.text import real_tokens, text_self_attention
from entropy_attn.guidance.tsam import TSAM, tsam_loss
from entropy_attn.guidance.update import input_correction, step_size, update_latents

if TYPE_CHECKING:
    from entropy_attn.integrations.guidance.attach import attach as attach

__all__ = [
    "CONFORM",
    "JEDI",
    "TSAM",
    "AttendAndExcite",
    "Custom",
    "Guidance",
    "Prompt",
    "RandomDirection",
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
    # `attach` is public under this name too. It needs diffusers and is on a higher floor: an upward import, which
    # tests/test_layout.py names.
    if name != "attach":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from entropy_attn.errors import naming_the_extra

    with naming_the_extra("entropy_attn.guidance.attach"):
        from entropy_attn.integrations.guidance import attach

    return attach
