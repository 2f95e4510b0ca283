"""`attach`: a guidance on an existing diffusers pipeline, whose `__call__` keeps its arguments and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from entropy_attn.display import table
from entropy_attn.guidance.method import Guidance, Prompt, as_guidance
from entropy_attn.integrations.diffusers.branches import OTHER_GUIDANCE
from entropy_attn.integrations.diffusers.models import find_model
from entropy_attn.integrations.diffusers.pipeline_calls import add_around, arounds_of, remove_around
from entropy_attn.integrations.guidance.generation import Generation, guided
from entropy_attn.integrations.guidance.prompts import ENCODERS
from entropy_attn.validation import checked_prompt


class GuidanceHandle:
    """The guidance of one pipeline, as `attach` returns it; `remove()`, or leaving it as a context manager, undoes it.

    Attributes:
        guidance: the `Guidance`.
        losses: of the latest generation, (step, loss of every image (B,)) in order, refinements included.
        maps: of its latest guided step, (B, h, w, s); None before one.
        prompts: of its images, with the text encoder's attention where the guidance uses it.
        active: False once removed.
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
        """Undo the guidance: the pipeline's call is as before. Does nothing the second time."""
        if self._pipe is not None:
            remove_around(self._pipe, self._call)
            self._pipe = None

    def __enter__(self) -> GuidanceHandle:
        """The handle itself.

        Raises:
            RuntimeError: it was removed.
        """
        if not self.active:
            raise RuntimeError("this guidance was removed: call attach again")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<GuidanceHandle, {self.guidance!r}{'' if self.active else ', removed'}>"

    def _repr_html_(self) -> str:
        rows = [
            {"step": step, **{f"loss of image {at}": float(value) for at, value in enumerate(loss)}}
            for step, loss in self.losses
        ]
        note = f"{self.guidance!r}; " + ("active" if self.active else "removed")
        return table(type(self).__name__, rows, note if rows else f"{note}; nothing generated yet")

    def _call(self, pipe: Any, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        with guided(pipe, self.guidance, self._prompt, args, kwargs) as self._generation:
            return call(*args, **kwargs)


def attach(
    pipe: DiffusionPipeline,
    guidance: Guidance | Callable[[Tensor, Prompt], Tensor],
    *,
    prompt: str | Sequence[str] | None = None,
) -> GuidanceHandle:
    """Guide every generation of `pipe` until `handle.remove()`, its first step included.

    For pipelines around a `UNet2DConditionModel` with CLIP text encoders, Stable Diffusion 1 and 2, SDXL, and their
    relatives; around an `SD3Transformer2DModel`, with CLIP and T5; and around a `FluxTransformer2DModel`, with T5. The
    maps of transformers are those of joint attention, from the image to the text. Only the conditional part of the
    batch is differentiated, no further than the last layer whose maps are used, and not at all after the last guided
    step. An `ea.apply` on the same pipeline keeps its scale, in the guided
    pass too, and its recorders see only the pipeline's calls.

    Args:
        pipe: the pipeline. Only this one is guided, not others that share its components.
        guidance: `TSAM()` or another `Guidance`; or a loss, a callable (maps, prompt) like `Guidance.loss`, which
            becomes a `Custom`.
        prompt: the prompt, or a list of them, for a pipeline that gets embeddings instead (weighted prompts).

    Returns:
        The `GuidanceHandle`. It is a context manager that removes the guidance at its end.

    Raises:
        TypeError: `pipe` is no pipeline, `guidance` neither a `Guidance` nor a callable, or `prompt` no text.
        ValueError: the pipeline has none of these denoisers or no `encode_prompt`, denoises in views that overlap, or
            has another kind of guidance.
        RuntimeError: the pipeline is guided already.

    While the pipeline runs, a call raises ValueError (or `UnknownParts`, which is one) where the prompt, or its
    part of the batch, is not known, no layer has `map_size` or is one of `layers`, or the embeddings are longer than
    the prompt's tokens.
    """
    guidance = as_guidance(guidance)
    check_guided(pipe)
    if any(isinstance(getattr(around, "__self__", None), GuidanceHandle) for around in arounds_of(pipe)):
        raise RuntimeError(f"this {type(pipe).__name__} is guided already: remove() that guidance first")
    handle = GuidanceHandle(pipe, guidance, None if prompt is None else checked_prompt(prompt))
    add_around(pipe, handle._call)
    return handle


def check_guided(pipe: Any) -> None:
    """Refuse what `attach` cannot guide, with the errors that it documents."""
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(f"pipe: expected a diffusers pipeline, got {pipe!r}")
    name = type(pipe).__name__
    unet, transformer = (getattr(pipe, each, None) for each in ("unet", "transformer"))
    served = isinstance(unet, UNet2DConditionModel)
    if unet is None and transformer is not None and getattr(pipe, "transformer_2", None) is None:
        model = find_model(transformer)
        served = model is not None and model.denoiser in ENCODERS
    if not served or not hasattr(pipe, "encode_prompt"):
        kinds = ", ".join(("UNet2DConditionModel", *ENCODERS))
        found = type(unet or transformer).__name__ if unet is not None or transformer is not None else "neither"
        raise ValueError(
            f"pipe: expected a pipeline with encode_prompt and one of {kinds} as its only denoiser, got {name} with "
            f"{found}"
        )
    for attribute in OTHER_GUIDANCE:
        if hasattr(type(pipe), attribute):
            raise ValueError(f"pipe={name} has {attribute}, so its batch may have more than two parts")
    if hasattr(pipe, "get_views"):
        raise ValueError(
            f"pipe={name} denoises its image in views that overlap: a map would be of one view, and the latents of the "
            "others would not follow"
        )
