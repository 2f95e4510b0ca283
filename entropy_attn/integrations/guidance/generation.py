"""One generation of a pipeline under a guidance: its latents are updated before each guided step.

A pipeline passes its latents to `scheduler.scale_model_input`, the result to the UNet, and the same latents again to
`scheduler.step`. During one pipeline call these three are intercepted, on this pipeline alone: the first shows the
latents, before the second they are updated and the UNet gets the new ones, and the third steps from the new ones. So
the first step is guided like all others, which no `callback_on_step_end` can do. It also does not matter that a
pipeline duplicates the latents before it scales them: nothing relies on changing that copy. All of it is undone when
the call ends, whatever happens in it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.integrations.diffusers.generation import GenerationTracker, TrackedCall
from entropy_attn.integrations.diffusers.models import model_of
from entropy_attn.integrations.diffusers.pipeline_calls import run_of
from entropy_attn.integrations.diffusers.prompt_hook import add_prompt_hook
from entropy_attn.integrations.diffusers.row_texts import Encoded
from entropy_attn.integrations.guidance.forward import conditional
from entropy_attn.integrations.guidance.prompts import prompts_of
from entropy_attn.integrations.guidance.updates import LatentUpdates, with_sample
from entropy_attn.recorders.base import Parts, UnknownParts


@contextmanager
def guided(
    pipe: DiffusionPipeline,
    guidance: Guidance,
    prompt: list[str] | None,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Iterator[Generation]:
    """One generation of `pipe`, called with these arguments, happens in this block, under this guidance."""
    generation = Generation(pipe, guidance, prompt)
    scheduler, names = pipe.scheduler, ("scale_model_input", "step")
    before = {name: scheduler.__dict__[name] for name in names if name in scheduler.__dict__}
    undo: list[Callable[[], None]] = []
    try:
        undo.append(add_prompt_hook(pipe, generation.add_text))
        hook = pipe.unet.register_forward_pre_hook(generation.before_denoiser, with_kwargs=True)
        undo.append(hook.remove)
        scheduler.scale_model_input = generation.scale_model_input
        scheduler.step = generation.scheduler_step
        with run_of(pipe, args, kwargs):
            yield generation
    finally:
        for name in names:
            scheduler.__dict__.pop(name, None)
        scheduler.__dict__.update(before)
        for each in undo:
            each()
        generation.close()


class Generation:
    """One pipeline call under a guidance.

    Attributes:
        losses: (step, loss of every image (B,)) in order, refinements included.
        maps: of the latest guided step, (B, h, w, s); None before one.
        prompts: of the images, with the text encoder's attention where the guidance uses it.
    """

    def __init__(self, pipe: DiffusionPipeline, guidance: Guidance, prompt: list[str] | None):
        self.pipe: Any = pipe  # this, the scheduler's methods and the latents are None once closed
        self.guidance = guidance
        self._updates = LatentUpdates(pipe.unet, guidance)
        if prompt is not None:
            self._updates.texts = prompts_of(pipe, prompt, guidance.needs_text_attention)
        self._scale: Any = pipe.scheduler.scale_model_input
        self._step: Any = pipe.scheduler.step
        # Pipelines inspect these signatures for the arguments that a scheduler takes.
        self.scale_model_input = _signed(self._scale_model_input, self._scale)
        self.scheduler_step = _signed(self._scheduler_step, self._step)
        self._tracker = GenerationTracker(model_of(pipe.unet), pipe)
        self._parameters = tuple(inspect.signature(type(pipe.unet).forward).parameters)[1:]
        self._scaled: tuple[Tensor, Any, Any] | None = None  # latents that were scaled and not denoised yet
        self._updated: Tensor | None = None  # latents that were denoised and not stepped from yet
        self._latest_step = -1
        self._busy = False

    @property
    def losses(self) -> list[tuple[int, Tensor]]:
        return self._updates.losses

    @property
    def maps(self) -> Tensor | None:
        return self._updates.maps

    @property
    def prompts(self) -> list[Prompt]:
        return self._updates.prompts

    def close(self) -> None:
        """Release the pipeline and its latents; the results stay."""
        self._updates.close()
        self.pipe = self._scale = self._step = self._scaled = self._updated = None

    def add_text(self, encoded: Encoded) -> None:
        """The pipeline encoded a text."""
        if self._tracker.add_text(encoded) != "cond":
            return
        updates = self._updates
        if updates.texts is None and encoded.prompts is not None:
            prompts: Any = encoded.prompts  # of these pipelines, one text each
            updates.texts = prompts_of(self.pipe, prompts, self.guidance.needs_text_attention)
        if updates.texts is None:
            raise ValueError(
                "the prompt is not known, so neither are its words: call the pipeline with a text, or give the text of "
                "the embeddings with attach(pipe, guidance, prompt=...), guidance_prompt=... of a T-SAM pipeline"
            )
        updates.warn_of_short_texts()

    def _scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._busy:
            self._scaled = (sample, args, kwargs)
        return self._scale(sample, *args, **kwargs)

    def _scheduler_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._updated is not None:
            if "sample" in kwargs:
                kwargs["sample"] = self._updated
            else:
                args = (*args[:2], self._updated, *args[3:])  # (model_output, timestep, sample, ...)
            self._updated = None
        return self._step(*args, **kwargs)

    @torch.compiler.disable
    def before_denoiser(self, unet: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Guide the latents of this call; returns the UNet's arguments with the new ones."""
        if self._busy or self._scaled is None:  # the guided pass itself, or no denoising step
            return None
        (latents, *scaling), self._scaled = self._scaled, None
        call = self._tracker.begin_call(dict(zip(self._parameters, args, strict=False)) | kwargs)
        step, again = call.step, call.step == self._latest_step
        self._latest_step = step
        if not self._updates.due(step):
            return None
        part, parts = self._conditional_part(call, again)
        images = len(args[0] if args else kwargs["sample"]) // parts
        if len(latents) not in (images, parts * images):
            raise ValueError(
                f"{type(self.pipe).__name__} cannot be guided: it scales {len(latents)} latents for a batch of "
                f"{parts * images}"
            )
        latents = latents[:images] if len(latents) == images else latents[part * images :][:images]
        steps = max(getattr(self.pipe, "num_timesteps", 0) or len(self.pipe.scheduler.timesteps), step + 1)

        def scale(sample: Tensor) -> Tensor:
            return self._scale(sample, *scaling[0], **scaling[1])

        self._busy = True
        try:
            half = conditional(args, images, part, parts)
            options = conditional(kwargs, images, part, parts)
            self._updated = self._updates.update(latents, step, steps, scale, half, options)
            return with_sample(args, kwargs, scale(torch.cat([self._updated] * parts)))
        finally:
            self._busy = False

    def _conditional_part(self, call: TrackedCall, again: bool) -> tuple[int, int]:
        """Index of the prompt's part of the batch, and the number of equal parts. again: not the step's first call."""
        try:
            if again:
                raise UnknownParts("it is called several times a step, for parts of the image or for other passes")
            return _conditional_part(call.parts())
        except UnknownParts as unknown:
            raise UnknownParts(f"{type(self.pipe).__name__} cannot be guided: of its UNet, {unknown}") from None


def _conditional_part(parts: Parts) -> tuple[int, int]:
    """Index of the part of the prompt, and the number of equal parts."""
    if parts.rows is not None or not set(parts.names) & {"cond", "all"}:
        raise UnknownParts(f"the rows of a batch are not equal parts {parts.names}, one after the other")
    return parts.names.index("cond" if "cond" in parts.names else "all"), len(parts.names)


def _signed(function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under the name and signature of `like`."""

    @functools.wraps(like)
    def signed(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return signed
