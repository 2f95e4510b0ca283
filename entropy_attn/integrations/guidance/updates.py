"""The guided steps of one generation: from the latents before a step to the updated ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from entropy_attn.guidance.descent import Descent
from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.update import input_correction, step_size
from entropy_attn.integrations.diffusers.apply import plain_routing
from entropy_attn.integrations.guidance.forward import cross_attention_maps, map_layers


class LatentUpdates:
    """The updates of one generation's latents.

    Attributes:
        texts: its prompts, each once; None until they are known.
        losses: (step, loss of every image (B,)) in order, refinements included.
        maps: of the latest guided step, (B, h, w, s); None before one.
        prompts: of the images; empty before a guided step.
    """

    def __init__(self, unet: UNet2DConditionModel, guidance: Guidance):
        self.guidance = guidance
        self.texts: list[Prompt] | None = None
        self._routing: Any = plain_routing(unet)  # None once closed
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
        """Release the UNet; the results stay."""
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
        args, kwargs: of the UNet for these images, with the conditional text; its sample is exchanged.
        """
        if self._descent is None:
            self._descent = Descent(self.guidance, self._by_image(len(latents)))
        alpha = step_size(self.guidance.alpha, step, steps, self.guidance.step_range)
        dtype = (args[0] if args else kwargs["sample"]).dtype
        height, width = latents.shape[-2:]
        size, layers = map_layers(self._routing, (height, width), self.guidance.map_size)
        length = self._check_length(args, kwargs)

        def maps_of(wide: Tensor) -> Tensor:
            call = with_sample(args, kwargs, scale(wide).to(dtype))
            return cross_attention_maps(self._routing, layers, size, step, length, call)

        updated = self._descent.step(latents, step, alpha * input_correction(scale, latents), maps_of)
        return updated.to(latents.dtype)

    @property
    def _known_texts(self) -> list[Prompt]:
        if self.texts is None:
            raise RuntimeError("the UNet was called before the pipeline encoded a prompt")
        return self.texts

    def _by_image(self, batch: int) -> Sequence[Prompt]:
        # Pipelines repeat each prompt for its images before they go on to the next.
        if batch % len(self._known_texts):
            raise ValueError(
                f"{batch} images are generated from {len(self._known_texts)} prompts: give one prompt per image"
            )
        return [text for text in self._known_texts for _ in range(batch // len(self._known_texts))]

    def _check_length(self, args: tuple, kwargs: dict[str, Any]) -> int:
        states = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        if states.shape[1] != len(self._known_texts[0].text):
            raise ValueError(
                f"the prompt embeddings have {states.shape[1]} positions, the tokenizer's text "
                f"{len(self._known_texts[0].text)}: embeddings of longer prompts cannot be guided"
            )
        return states.shape[1]


def with_sample(args: tuple, kwargs: dict[str, Any], sample: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The UNet's call with other latents; channels that an inpainting pipeline appends to them stay."""
    given = args[0] if args else kwargs["sample"]
    if given.shape[1] > sample.shape[1]:
        sample = torch.cat([sample, given[:, sample.shape[1] :]], dim=1)
    return ((sample, *args[1:]), kwargs) if args else (args, {**kwargs, "sample": sample})
