"""The guided steps of one generation: from the latents before a step to the updated ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from entropy_attn.guidance.descent import Descent
from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.update import input_correction, step_size
from entropy_attn.integrations.diffusers.apply import plain_routing
from entropy_attn.integrations.guidance.forward import map_layers, text_maps
from entropy_attn.integrations.guidance.inputs import named, with_latents


class LatentUpdates:
    """The updates of one generation's latents.

    Attributes:
        texts: its prompts, each once; None until they are known.
        losses: (step, loss of every image (B,)) in order, refinements included.
        maps: of the latest guided step, (B, h, w, s); None before one.
        prompts: of the images; empty before a guided step.
    """

    def __init__(self, denoiser: ModelMixin, guidance: Guidance):
        self.guidance = guidance
        self.texts: list[Prompt] | None = None
        self._routing: Any = plain_routing(denoiser)  # None once closed
        self._descent: Descent | None = None

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
        """Release the denoiser; the results stay."""
        self._routing = None

    def warn_of_short_texts(self) -> None:
        """Warn of each prompt that is not guided."""
        for text in self.texts or ():
            if not self.guidance.applies_to(text):
                warnings.warn(
                    f"guidance={type(self.guidance).__name__}: the prompt {text.text.prompt!r} has too few words to be "
                    f"guided ({len(text)}); its loss is zero",
                    stacklevel=3,
                )

    def due(self, step: int) -> bool:
        """Whether this step is guided."""
        return step in self.guidance.steps and any(map(self.guidance.applies_to, self.texts or ()))

    def update(
        self,
        latents: Tensor,
        step: int,
        steps: int,
        scale: Callable[[Tensor], Tensor],
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """The updated latents (B, ...), in their dtype.

        steps: of the whole generation.
        scale: the scheduler's `scale_model_input` at this step.
        args, kwargs: of the denoiser for these images, with the conditional text; the latents in it are exchanged.
        """
        if self._descent is None:
            self._descent = Descent(self.guidance, self._by_image(len(latents)))
        alpha = step_size(self.guidance.alpha, step, steps, self.guidance.step_range)
        model, denoiser = self._routing.model, self._routing.denoiser
        arguments = named(denoiser, args, kwargs)
        dtype = arguments[model.latents].dtype
        latent_size = model.image(arguments, denoiser.config).size
        size, layers = map_layers(self._routing, latent_size, self.guidance.map_size, self.guidance.layers)
        length = self._check_length(arguments[model.text])

        def maps_of(wide: Tensor) -> Tensor:
            call = with_latents(args, kwargs, scale(wide).to(dtype), model.latents)
            return text_maps(self._routing, layers, size, step, length, call)

        updated = self._descent.step(latents, step, alpha * input_correction(scale, latents), maps_of)
        return updated.to(latents.dtype)

    @property
    def _known_texts(self) -> list[Prompt]:
        if self.texts is None:
            raise RuntimeError("the denoiser was called before the pipeline encoded a prompt")
        return self.texts

    def _by_image(self, batch: int) -> Sequence[Prompt]:
        # Pipelines repeat each prompt for its images before they go on to the next.
        if batch % len(self._known_texts):
            raise ValueError(
                f"{batch} images are generated from {len(self._known_texts)} prompts: give one prompt per image"
            )
        return [text for text in self._known_texts for _ in range(batch // len(self._known_texts))]

    def _check_length(self, states: Tensor) -> int:
        length = len(self._known_texts[0].text)
        if states.shape[1] != length:
            raise ValueError(
                f"the prompt embeddings have {states.shape[1]} positions, the tokenizer's text {length}: embeddings of "
                "longer prompts cannot be guided"
            )
        return length
