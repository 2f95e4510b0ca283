"""Which pipeline is at work, as the stack shows it.

A denoiser is called by whichever pipeline holds it, and nothing that it is handed says which: pipelines share their
components (`from_pipe`), and people call denoisers by hand. The frames of the call do say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from diffusers import DiffusionPipeline

# What a text is called that came out of a step in between, such as a list made of the prompt
UNNAMED = "a text that is none of its arguments"


def calling_pipeline() -> DiffusionPipeline | None:
    """The innermost pipeline whose method is running in this thread; None where a denoiser is called by hand."""
    return next((owner for _, owner in _methods(sys._getframe(1))), None)


def names_given(pipe: DiffusionPipeline, value: object) -> tuple[str, ...]:
    """The variables of the pipeline's running method that are `value`; () where it is called from outside of one.

    Flux encodes its negative prompt as it does its prompt, and CycleDiffusion a source prompt: what tells them apart is
    what the pipeline calls them, which are its public arguments.
    """
    for frame, owner in _methods(sys._getframe(1)):
        if owner is pipe and "encode_prompt" not in frame.f_code.co_name:
            found = tuple(name for name, each in frame.f_locals.items() if each is value)
            return found or (UNNAMED,)
    return ()


def embeddings_given(pipe: DiffusionPipeline) -> tuple[object, object]:
    """The encoded prompt and negative prompt of the pipeline's running method, None for one that it does not have.

    Where embeddings are given, or the text encoder is called without `encode_prompt`, this is where they are.
    """
    for frame, owner in _methods(sys._getframe(1)):
        if owner is pipe:
            return frame.f_locals.get("prompt_embeds"), frame.f_locals.get("negative_prompt_embeds")
    return None, None


def _methods(frame: FrameType | None) -> Iterator[tuple[FrameType, Any]]:
    """The frames, from the inside out, that are of a pipeline's methods."""
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            if isinstance(owner, DiffusionPipeline):
                yield frame, owner
        frame = frame.f_back
