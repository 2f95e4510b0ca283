"""Stable Diffusion and Flux pipelines with a `guidance=` argument; the rest is that of their parent classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from entropy_attn.guidance.method import Guidance, as_guidance
from entropy_attn.guidance.tsam import TSAM
from entropy_attn.integrations.guidance.attach import check_guided
from entropy_attn.integrations.guidance.generation import Generation, guided
from entropy_attn.validation import checked_prompt


class _Guided:
    """Adds guidance to the pipeline class that follows it among the bases, to which `super()` refers."""

    last_guidance: Generation | None = None

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        guidance: Guidance | Callable[..., Any] | None = TSAM(),  # noqa: B008  (immutable)
        guidance_prompt: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The parent's call, with the latents guided at every step of `guidance.steps`.

        Afterwards `last_guidance` has the `losses`, `maps` and `prompts` of this call; it is None without guidance.

        Args:
            *args: arguments of the parent's call.
            guidance: `TSAM()` or another `Guidance`, a callable (maps, prompt) -> loss, or None for no guidance.
            guidance_prompt: the text, or a list of texts, of `prompt_embeds` if they are given instead of a prompt.
            **kwargs: arguments of the parent's call.

        Returns:
            What the parent's call returns.

        Raises:
            TypeError: `guidance` or `guidance_prompt` has the wrong type.
            ValueError: the pipeline or the prompt cannot be guided.
        """
        self.last_guidance = None
        if guidance is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        guidance = as_guidance(guidance)
        check_guided(self)
        prompt = None if guidance_prompt is None else checked_prompt(guidance_prompt)
        with guided(self, guidance, prompt, args, kwargs) as self.last_guidance:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def to_json_string(self) -> str:
        """The configuration that `save_pretrained` writes. It names the parent class, so that plain diffusers loads it.

        Returns:
            JSON.
        """
        parent = next(cls for cls in type(self).__mro__ if cls.__module__.startswith("diffusers."))
        text = super().to_json_string()  # type: ignore[misc]
        return json.dumps({**json.loads(text), "_class_name": parent.__name__}, indent=2) + "\n"


class TSAMStableDiffusionPipeline(_Guided, StableDiffusionPipeline):
    """`StableDiffusionPipeline` with T-SAM guidance (arXiv 2411.15236): `pipe("a red bear and a blue bird")`.

    `from_pretrained` loads the same checkpoints as the parent class; `from_pipe` uses the modules of a loaded pipeline.
    """


class TSAMStableDiffusionXLPipeline(_Guided, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` with T-SAM guidance (arXiv 2411.15236); T is the mean over both text encoders."""


class TSAMStableDiffusion3Pipeline(_Guided, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` with T-SAM guidance, by the maps of its joint attention.

    The image attends to two texts, of CLIP and of T5. Each has its own T, and the loss is the mean of both; the T of
    CLIP is the mean over its two encoders.
    """


class TSAMFluxPipeline(_Guided, FluxPipeline):
    """`FluxPipeline` with T-SAM guidance, by the maps of its joint attention; T is that of T5.

    The distilled models have no negative branch: the one call of a step is guided. With `true_cfg_scale` and a negative
    prompt, the call for the prompt is guided, and both get the updated latents.
    """
