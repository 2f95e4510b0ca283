"""`attach`: a guidance on an existing diffusers pipeline, whose own `__call__` stays as it is.

A pipeline hands its latents to `scheduler.scale_model_input`, what that returns to the UNet, and the same latents once
more to `scheduler.step`. For the duration of one pipeline call we listen at these three places of this one pipeline:
the first shows the latents, before the second they are updated and the UNet gets the new ones, and at the third the new
ones take the place of the old. So the first step is guided as every other one is, which no `callback_on_step_end` can
do; and it does not matter that guidance duplicates the latents before they are scaled, for nothing relies on changing
that copy. All of it is undone when the call ends, whatever happens in it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from entropy_attn.guidance.descent import Descent
from entropy_attn.guidance.method import Guidance, Prompt, as_guidance
from entropy_attn.guidance.update import input_correction, step_size
from entropy_attn.integrations.diffusers.generation import Account
from entropy_attn.integrations.diffusers.handle import OTHER_GUIDANCE, plain_routing
from entropy_attn.integrations.diffusers.models.table import model_of
from entropy_attn.integrations.diffusers.module_calls import unwrap_call, wrap_call, wrapper_of
from entropy_attn.integrations.diffusers.prompt_hook import listen, unlisten
from entropy_attn.integrations.diffusers.row_texts import Encoded
from entropy_attn.integrations.guidance.forward import conditional, cross_attention_maps, map_layers
from entropy_attn.integrations.guidance.prompts import prompts_of
from entropy_attn.recorders.base import Parts, UnknownParts


class GuidanceHandle:
    """A guidance on one pipeline; `remove()`, or leaving it as a context manager, undoes it.

    losses: of the latest generation, (step, loss of every picture (B,)) in order, refinements included.
    maps: of its latest guided step, (B, h, w, s); None before one.
    prompts: of its pictures, with the text encoder's attention where the guidance looks at it.
    """

    def __init__(self, pipe: DiffusionPipeline, guidance: Guidance, prompt: list[str] | None):
        self.guidance = guidance
        self._pipe: DiffusionPipeline | None = pipe
        self._prompt = prompt
        self._generation: Generation | None = None

    @property
    def losses(self) -> list[tuple[int, Tensor]]:
        return [] if self._generation is None else self._generation.losses

    @property
    def maps(self) -> Tensor | None:
        return None if self._generation is None else self._generation.maps

    @property
    def prompts(self) -> list[Prompt]:
        return [] if self._generation is None else self._generation.prompts

    @property
    def active(self) -> bool:
        return self._pipe is not None

    def remove(self) -> None:
        """Give the pipeline its own call back. Does nothing the second time."""
        if self._pipe is not None:
            unwrap_call(self._pipe)
            self._pipe = None

    def __enter__(self) -> GuidanceHandle:
        if not self.active:
            raise RuntimeError("this guidance was removed: call attach again")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<GuidanceHandle, {self.guidance!r}{'' if self.active else ', removed'}>"

    def _call(self, pipe: Any, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        with guided(self._pipe, self.guidance, self._prompt) as self._generation:
            return call(*args, **kwargs)


def attach(
    pipe: DiffusionPipeline,
    guidance: Guidance | Callable[[Tensor, Prompt], Tensor],
    *,
    prompt: str | Sequence[str] | None = None,
) -> GuidanceHandle:
    """Guide every generation of `pipe` until `handle.remove()`, its first step included.

    For pipelines around a `UNet2DConditionModel` with CLIP text encoders: Stable Diffusion 1 and 2, SDXL, and their
    relatives. The conditional half of the batch alone is differentiated, no further than the last layer whose maps are
    used, and not at all once the last guided step is done. An `ea.apply` on the same pipeline keeps its scale, in the
    guided pass too, and its recorders see the pipeline's own calls alone.

    guidance: `TSAM()` or another `Guidance`; or a loss, a callable (maps, prompt) as `Guidance.loss`, for `Custom`.
    prompt: the prompt, or a list of them, for a pipeline that is given embeddings instead (weighted prompts).

    Raises:
        TypeError, ValueError: a pipeline or guidance that is none, or a pipeline whose batch has other parts.
        RuntimeError: the pipeline is guided already.
    """
    guidance = as_guidance(guidance)
    check_guided(pipe)
    if wrapper_of(pipe) is not None:
        raise RuntimeError(f"this {type(pipe).__name__} is guided already: remove() that guidance first")
    handle = GuidanceHandle(pipe, guidance, checked_prompt(prompt))
    wrap_call(pipe, handle._call)
    return handle


def check_guided(pipe: Any) -> None:
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(f"pipe={pipe!r}: a diffusers pipeline is needed")
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, UNet2DConditionModel) or not hasattr(pipe, "encode_prompt"):
        raise ValueError(
            f"pipe={type(pipe).__name__}: a pipeline with a UNet2DConditionModel and encode_prompt is needed"
        )
    for name in OTHER_GUIDANCE:
        if hasattr(type(pipe), name):
            raise ValueError(f"pipe={type(pipe).__name__} has {name}, so that its batch may have more parts than two")
    if hasattr(pipe, "get_views"):
        raise ValueError(
            f"pipe={type(pipe).__name__} denoises its picture in views that overlap: a map would be of one view, and "
            "the latents of the others would not follow"
        )


def checked_prompt(prompt: Any) -> list[str] | None:
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (tuple, list)) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise TypeError(f"prompt={prompt!r}: a text, a list of them, or None is needed")
    return list(prompts)


@contextmanager
def guided(pipe: DiffusionPipeline, guidance: Guidance, prompt: list[str] | None) -> Iterator[Generation]:
    """One generation of `pipe` happens in this block, under this guidance."""
    generation = Generation(pipe, guidance, prompt)
    scheduler, names = pipe.scheduler, ("scale_model_input", "step")
    before = {name: scheduler.__dict__[name] for name in names if name in scheduler.__dict__}
    hook = None
    try:
        listen(pipe, generation.hear)
        hook = pipe.unet.register_forward_pre_hook(generation.before_denoiser, with_kwargs=True)
        scheduler.scale_model_input = generation.scale_model_input
        scheduler.step = generation.scheduler_step
        yield generation
    finally:
        for name in names:
            scheduler.__dict__.pop(name, None)
        scheduler.__dict__.update(before)
        if hook is not None:
            hook.remove()
        unlisten(pipe)
        generation.close()


class Generation:
    """What happens to one pipeline call under a guidance."""

    def __init__(self, pipe: DiffusionPipeline, guidance: Guidance, prompt: list[str] | None):
        self.pipe = pipe
        self.guidance = guidance
        self.own = plain_routing(pipe.unet)
        self._texts = None if prompt is None else prompts_of(pipe, prompt, guidance.needs_text_attention)
        self._scale, self._step = pipe.scheduler.scale_model_input, pipe.scheduler.step
        # Pipelines look at these signatures for the arguments that a scheduler takes.
        self.scale_model_input = _signed(self._scale_model_input, self._scale)
        self.scheduler_step = _signed(self._scheduler_step, self._step)
        self._account = Account(model_of(pipe.unet), pipe)
        self._parameters = tuple(inspect.signature(type(pipe.unet).forward).parameters)[1:]
        self._descent: Descent | None = None
        self._seen: tuple[Tensor, tuple, dict] | None = None  # latents that were scaled and not denoised yet
        self._updated: Tensor | None = None  # latents that were denoised and not stepped from yet
        self._latest_step = -1
        self._busy = False

    @property
    def losses(self) -> list[tuple[int, Tensor]]:
        return [] if self._descent is None else self._descent.losses

    @property
    def maps(self) -> Tensor | None:
        return None if self._descent is None else self._descent.maps

    @property
    def prompts(self) -> list[Prompt]:
        return [] if self._descent is None else self._descent.prompts

    def close(self) -> None:
        """Let go of the pipeline and of what was on its way; what was measured stays."""
        self.pipe = self.own = self._scale = self._step = self._seen = self._updated = None

    def hear(self, encoded: Encoded) -> None:
        if self._account.hear(encoded) != "cond":
            return
        if self._texts is None and encoded.prompts is not None:
            self._texts = prompts_of(self.pipe, encoded.prompts, self.guidance.needs_text_attention)
        if self._texts is None:
            raise ValueError(
                "the prompt is not known, so neither are its words: call the pipeline with a text, or give the text of "
                "the embeddings with attach(pipe, guidance, prompt=...), guidance_prompt=... of a T-SAM pipeline"
            )
        for text in self._texts:
            if not self.guidance.applies_to(text):
                warnings.warn(
                    f"guidance={type(self.guidance).__name__}: the prompt {text.text.prompt!r} has too few words to be "
                    f"guided ({len(text)}); its loss is zero",
                    stacklevel=2,
                )

    def _scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._busy:
            self._seen = (sample, args, kwargs)
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
        if self._busy or self._seen is None:  # the guided pass itself, or no denoising step
            return None
        (latents, *scaling), self._seen = self._seen, None
        place = self._account.call(dict(zip(self._parameters, args, strict=False)) | kwargs)
        step, again = place.step, place.step == self._latest_step
        self._latest_step = step
        if step not in self.guidance.steps or not any(map(self.guidance.applies_to, self._texts)):
            return None
        try:
            if again:
                raise UnknownParts("it is called several times a step, for parts of the picture or for other passes")
            part, parts = _conditional_part(place.parts())
        except UnknownParts as unknown:
            raise UnknownParts(f"{type(self.pipe).__name__} cannot be guided: of its UNet, {unknown}") from None
        pictures = len(args[0] if args else kwargs["sample"]) // parts
        if len(latents) not in (pictures, parts * pictures):
            raise ValueError(
                f"{type(self.pipe).__name__} cannot be guided: it scales {len(latents)} latents for a batch of "
                f"{parts * pictures}"
            )
        latents = latents[:pictures] if len(latents) == pictures else latents[part * pictures :][:pictures]
        self._busy = True
        try:
            inputs = conditional(args, pictures, part, parts), conditional(kwargs, pictures, part, parts)
            updated = self._guide(latents, step, scaling, *inputs).to(latents.dtype)
            sample = self._scale(torch.cat([updated] * parts), *scaling[0], **scaling[1])
        finally:
            self._busy = False
        self._updated = updated
        return _with_sample(args, kwargs, sample)

    def _guide(self, latents: Tensor, step: int, scaling: list, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        def scale(sample: Tensor) -> Tensor:
            return self._scale(sample, *scaling[0], **scaling[1])

        if self._descent is None:
            self._descent = Descent(self.guidance, self._by_picture(len(latents)))
        steps = max(getattr(self.pipe, "num_timesteps", 0) or len(self.pipe.scheduler.timesteps), step + 1)
        alpha = step_size(self.guidance.alpha, step, steps, self.guidance.step_range)
        dtype = (args[0] if args else kwargs["sample"]).dtype
        size, layers = map_layers(self.own, tuple(latents.shape[-2:]), self.guidance.map_size)
        length = self._check_length(args, kwargs)

        def maps_of(wide: Tensor) -> Tensor:
            call = _with_sample(args, kwargs, scale(wide).to(dtype))
            return cross_attention_maps(self.own, layers, size, step, length, call)

        return self._descent.step(latents, step, alpha * input_correction(scale, latents), maps_of)

    def _by_picture(self, batch: int) -> list[Prompt]:
        # Pipelines repeat each prompt for its pictures before they go on to the next.
        if batch % len(self._texts):
            raise ValueError(
                f"{batch} pictures are generated from {len(self._texts)} prompts: give one prompt a picture"
            )
        return [text for text in self._texts for _ in range(batch // len(self._texts))]

    def _check_length(self, args: tuple, kwargs: dict[str, Any]) -> int:
        states = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        if states.shape[1] != len(self._texts[0].text):
            raise ValueError(
                f"the prompt embeddings have {states.shape[1]} positions, the tokenizer's text "
                f"{len(self._texts[0].text)}: embeddings of longer prompts cannot be guided"
            )
        return states.shape[1]


def _conditional_part(parts: Parts) -> tuple[int, int]:
    """Which of how many equal parts of the batch is of the prompt."""
    if parts.rows is not None or not set(parts.names) & {"cond", "all"}:
        raise UnknownParts(f"the rows of a batch are not in equal parts one after the other, of {parts.names}")
    return parts.names.index("cond" if "cond" in parts.names else "all"), len(parts.names)


def _signed(function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under the name and signature of `like`."""

    @functools.wraps(like)
    def signed(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return signed


def _with_sample(args: tuple, kwargs: dict[str, Any], sample: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The UNet's call with other latents; channels that an inpainting pipeline adds to them stay."""
    given = args[0] if args else kwargs["sample"]
    if given.shape[1] > sample.shape[1]:
        sample = torch.cat([sample, given[:, sample.shape[1] :]], dim=1)
    return ((sample, *args[1:]), kwargs) if args else (args, {**kwargs, "sample": sample})
