"""One generation of a pipeline under a guidance: its latents are updated before each guided step.

A pipeline passes its latents to `scheduler.scale_model_input`, the result to the UNet, and the same latents again to
`scheduler.step`. During one pipeline call these three are intercepted, on this pipeline alone: the first shows the
latents, before the second they are updated and the UNet gets the new ones, and the third steps from the new ones. So
the first step is guided like all others, which no `callback_on_step_end` can do. It also does not matter that a
pipeline duplicates the latents before it scales them: nothing relies on changing that copy. All of it is undone when
the call ends, whatever happens in it.

The pipelines of transformers do not scale: they pass the latents to the transformer, in one call for all branches or in
one call for each, and the same latents to `scheduler.step`. There the calls of the transformer show the latents, all of
a step get the new ones, and the scheduler steps from them.
"""

from __future__ import annotations

import functools
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
from entropy_attn.integrations.diffusers.target import denoiser_of
from entropy_attn.integrations.guidance.forward import conditional
from entropy_attn.integrations.guidance.inputs import latents_in, named, with_latents
from entropy_attn.integrations.guidance.prompts import joint_prompts_of, prompts_of
from entropy_attn.integrations.guidance.updates import LatentUpdates
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
    kind = UNetGeneration if getattr(pipe, "unet", None) is not None else TransformerGeneration
    generation = kind(pipe, guidance, prompt)
    scheduler, names = pipe.scheduler, tuple(generation.intercepted)
    before = {name: scheduler.__dict__[name] for name in names if name in scheduler.__dict__}
    undo: list[Callable[[], None]] = []
    try:
        undo.append(add_prompt_hook(pipe, generation.add_text, generation.model.tokenizers))
        hook = generation.denoiser.register_forward_pre_hook(generation.before_denoiser, with_kwargs=True)
        undo.append(hook.remove)
        for name, method in generation.intercepted.items():
            setattr(scheduler, name, method)
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

    intercepted: dict[str, Callable[..., Any]]  # methods of the scheduler by name, while the pipeline runs

    def __init__(self, pipe: DiffusionPipeline, guidance: Guidance, prompt: list[str] | None):
        self.pipe: Any = pipe  # this, the denoiser, the scheduler's methods and the latents are None once closed
        self.guidance = guidance
        self.denoiser: Any = denoiser_of(pipe)
        self.model = model_of(self.denoiser)
        self._prompt = prompt
        self._updates = LatentUpdates(self.denoiser, guidance)
        self._step: Any = pipe.scheduler.step
        self._tracker = GenerationTracker(self.model, pipe)
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
        self.pipe = self.denoiser = self._step = self._updated = None
        self.intercepted = {}

    def add_text(self, encoded: Encoded) -> None:
        """The pipeline encoded a text."""
        if self._tracker.add_text(encoded) != "cond":
            return
        updates = self._updates
        if updates.texts is None and (prompts := self._prompt or encoded.prompts) is not None:
            updates.texts = self._texts(prompts, encoded)
        if updates.texts is None:
            raise ValueError(
                "the prompt is not known, so neither are its words: call the pipeline with a text, or give the text of "
                "the embeddings with attach(pipe, guidance, prompt=...), guidance_prompt=... of a T-SAM pipeline"
            )
        updates.warn_of_short_texts()

    def _texts(self, prompts: Any, encoded: Encoded) -> list[Prompt]:
        """The prompts with their words, each once."""
        raise NotImplementedError

    def before_denoiser(
        self, denoiser: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Guide the latents of this call; returns the denoiser's arguments with the new ones."""
        raise NotImplementedError

    def _steps(self, step: int) -> int:
        """Of the whole generation, which is at this one."""
        return max(getattr(self.pipe, "num_timesteps", 0) or len(self.pipe.scheduler.timesteps), step + 1)

    def _cannot(self, unknown: UnknownParts) -> UnknownParts:
        what = "UNet" if self.model.halves else "transformer"
        return UnknownParts(f"{type(self.pipe).__name__} cannot be guided: of its {what}, {unknown}")


class UNetGeneration(Generation):
    """One call of a pipeline around a UNet, which scales its latents for the UNet."""

    def __init__(self, pipe: DiffusionPipeline, guidance: Guidance, prompt: list[str] | None):
        super().__init__(pipe, guidance, prompt)
        if prompt is not None:
            self._updates.texts = prompts_of(pipe, prompt, guidance.needs_text_attention)
        self._scale: Any = self.pipe.scheduler.scale_model_input
        # Pipelines inspect these signatures for the arguments that a scheduler takes.
        self.intercepted = {
            "scale_model_input": _signed(self._scale_model_input, self._scale),
            "step": _signed(self._scheduler_step, self._step),
        }
        self._scaled: tuple[Tensor, Any, Any] | None = None  # latents that were scaled and not denoised yet

    def close(self) -> None:
        super().close()
        self._scale = self._scaled = None

    def _texts(self, prompts: Any, encoded: Encoded) -> list[Prompt]:
        return prompts_of(self.pipe, prompts, self.guidance.needs_text_attention)

    def _scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._busy:
            self._scaled = (sample, args, kwargs)
        return self._scale(sample, *args, **kwargs)

    def _scheduler_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._updated is not None:
            args, kwargs = _with_sample(args, kwargs, self._updated)
            self._updated = None
        return self._step(*args, **kwargs)

    @torch.compiler.disable
    def before_denoiser(self, unet: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self._busy or self._scaled is None:  # the guided pass itself, or no denoising step
            return None
        (latents, *scaling), self._scaled = self._scaled, None
        call = self._tracker.begin_call(named(unet, args, kwargs))
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

        def scale(sample: Tensor) -> Tensor:
            return self._scale(sample, *scaling[0], **scaling[1])

        self._busy = True
        try:
            half = conditional(args, images, part, parts)
            options = conditional(kwargs, images, part, parts)
            self._updated = self._updates.update(latents, step, self._steps(step), scale, half, options)
            return with_latents(args, kwargs, scale(torch.cat([self._updated] * parts)), "sample")
        finally:
            self._busy = False

    def _conditional_part(self, call: TrackedCall, again: bool) -> tuple[int, int]:
        """Index of the prompt's part of the batch, and the number of equal parts. again: not the step's first call."""
        try:
            if again:
                raise UnknownParts("it is called several times a step, for parts of the image or for other passes")
            return _conditional_part(call.parts())
        except UnknownParts as unknown:
            raise self._cannot(unknown) from None


class TransformerGeneration(Generation):
    """One call of a pipeline around a transformer, which is called with the latents as they are."""

    def __init__(self, pipe: DiffusionPipeline, guidance: Guidance, prompt: list[str] | None):
        if getattr(denoiser_of(pipe), "is_cache_enabled", False):
            raise ValueError(
                f"{type(pipe).__name__} cannot be guided while its transformer has a cache, whose contents the guided "
                "pass would change: disable_cache() first"
            )
        super().__init__(pipe, guidance, prompt)
        self.intercepted = {"step": _signed(self._scheduler_step, self._step)}
        self._given: Tensor | None = None  # the latents that `_updated` replace at this step

    def close(self) -> None:
        super().close()
        self._given = None

    def _texts(self, prompts: Any, encoded: Encoded) -> list[Prompt]:
        states: Any = encoded.text
        return joint_prompts_of(self.pipe, prompts, states.shape[1], self.guidance.needs_text_attention)

    def _scheduler_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._updated is not None and self._given is not None:
            sample = kwargs["sample"] if "sample" in kwargs else args[2]
            if not _same(sample, self._given):
                raise ValueError(
                    f"{type(self.pipe).__name__} cannot be guided: its transformer is not called with the latents that "
                    "its scheduler steps from"
                )
            args, kwargs = _with_sample(args, kwargs, self._updated)
            self._updated = self._given = None
        return self._step(*args, **kwargs)

    @torch.compiler.disable
    def before_denoiser(
        self, transformer: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self._busy:  # the guided pass itself
            return None
        arguments = named(transformer, args, kwargs)
        call = self._tracker.begin_call(arguments)
        step = call.step
        if step != self._latest_step:
            self._latest_step, self._given, self._updated = step, None, None
        if not self._updates.due(step):
            return None
        latents, parts = self._latents_and_parts(transformer, call, arguments)
        images = len(latents) // max(1, len(parts.names))
        self._busy = True
        try:
            if self._given is None or self._updated is None:
                part, count = self._conditional_part(parts)
                half, options = (conditional(each, images, part, count) for each in (args, kwargs))
                given = latents[part * images :][:images]
                self._updated = self._updates.update(given, step, self._steps(step), _unscaled, half, options)
                self._given = given
            elif not _same(latents[:images], self._given):
                raise self._cannot(
                    UnknownParts("it is called several times a step with other latents, for parts of the image")
                )
            repeated = torch.cat([self._updated] * (len(latents) // images))
            return with_latents(args, kwargs, repeated, self.model.latents)
        finally:
            self._busy = False

    def _latents_and_parts(
        self, transformer: Any, call: TrackedCall, arguments: dict[str, Any]
    ) -> tuple[Tensor, Parts]:
        try:
            return latents_in(transformer, arguments), call.parts()
        except UnknownParts as unknown:
            raise self._cannot(unknown) from None

    def _conditional_part(self, parts: Parts) -> tuple[int, int]:
        try:
            if parts.names == ("uncond",):
                raise UnknownParts("the first call of a step is for the negative prompt")
            return _conditional_part(parts)
        except UnknownParts as unknown:
            raise self._cannot(unknown) from None


def _unscaled(sample: Tensor) -> Tensor:
    return sample


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two latents are the same; waits for the device unless they share their memory."""
    if one.shape != other.shape:
        return False
    shared = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return (shared and one.dtype == other.dtype) or bool(torch.equal(one.to(other.dtype), other))


def _with_sample(args: tuple, kwargs: dict[str, Any], sample: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The arguments (model_output, timestep, sample, ...) of a scheduler's step with another sample."""
    if "sample" in kwargs:
        return args, {**kwargs, "sample": sample}
    return (*args[:2], sample, *args[3:]), kwargs


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
