"""Stable Diffusion pipelines with a `guidance=` argument. All else is their parents'."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from entropy_attn.guidance.method import Guidance, as_guidance
from entropy_attn.guidance.tsam import TSAM
from entropy_attn.integrations.guidance.attach import check_guided
from entropy_attn.integrations.guidance.generation import Generation, guided
from entropy_attn.validation import checked_prompt


class _Guided:
    """Before a pipeline class among the bases, it guides that one's call."""

    last_guidance: Generation | None = None

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        guidance: Guidance | Callable | None = TSAM(),  # noqa: B008  (immutable)
        guidance_prompt: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The parent's call, with its latents guided at every step of `guidance.steps`.

        guidance: `TSAM()` or another `Guidance`, a callable (maps, prompt) -> loss, or None for the parent's picture.
        guidance_prompt: the text, or a list, of `prompt_embeds`, where those are given instead of a prompt.

        All other arguments are the parent's. `last_guidance` then has `losses`, `maps` and `prompts` of this call.
        """
        self.last_guidance = None
        if guidance is None:
            return super().__call__(*args, **kwargs)
        guidance = as_guidance(guidance)
        check_guided(self)
        prompt = None if guidance_prompt is None else checked_prompt(guidance_prompt)
        with guided(self, guidance, prompt, args, kwargs) as self.last_guidance:
            return super().__call__(*args, **kwargs)

    def to_json_string(self) -> str:
        """The configuration that `save_pretrained` writes: the parent's, so that plain diffusers loads it too."""
        parent = next(cls for cls in type(self).__mro__ if cls.__module__.startswith("diffusers."))
        return json.dumps({**json.loads(super().to_json_string()), "_class_name": parent.__name__}, indent=2) + "\n"


class TSAMStableDiffusionPipeline(_Guided, StableDiffusionPipeline):
    """`StableDiffusionPipeline` with T-SAM (arXiv 2411.15236): `pipe("a red bear and a blue bird")` is guided.

    `from_pretrained` loads what the parent loads; `from_pipe` takes the modules of a pipeline at hand.
    """


class TSAMStableDiffusionXLPipeline(_Guided, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` with T-SAM (arXiv 2411.15236); T is the mean of both text encoders'."""
