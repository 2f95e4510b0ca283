"""Controls: what a guidance has to be compared with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.validation import expected, require_int


@dataclass(frozen=True, kw_only=True)
class RandomDirection(Guidance):
    """Moves the latents as far as another guidance would, at the same steps, but in a random direction.

    Any change of the latents gives other images, and on images that failed any change repairs some. A guidance shows
    something only where it does better than this and than another seed. Each update is as long as that of the guidance
    at the same latents; its direction is drawn from the sphere, for each image and
    update anew. Refinements that wait for a threshold wait for the same one.

    Args:
        guidance: the guidance whose steps, lengths and other settings are taken.
        seed: of the directions. With the same seed an image of a batch has the same directions in every generation.

    Raises:
        TypeError: `guidance` is no `Guidance`, or `seed` no integer.
        ValueError: `seed` is negative.
    """

    guidance: Guidance
    seed: int = 0
    # Those of `guidance`, from __post_init__ on
    alpha: float = field(init=False)
    steps: Iterable[int] = field(init=False)
    step_range: tuple[float, float] = field(init=False)
    refine_at: Iterable[int] = field(init=False)
    refine_iters: int = field(init=False)
    map_size: tuple[int, int] | None = field(init=False)
    layers: str | re.Pattern[str] | None = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.guidance, Guidance):
            raise TypeError(expected("guidance", "a Guidance, such as TSAM()", self.guidance))
        require_int("seed", self.seed, least=0)
        for each in fields(Guidance):
            object.__setattr__(self, each.name, getattr(self.guidance, each.name))
        object.__setattr__(self, "needs_text_attention", self.guidance.needs_text_attention)
        object.__setattr__(self, "waits", self.guidance.waits)

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The loss of `guidance`, whose gradient gives the length.

        Args:
            maps: (h, w, s) float32, the cross-attention probabilities of one image.
            prompt: its prompt.

        Returns:
            The loss, 0-d.
        """
        return self.guidance.loss(maps, prompt)

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether `guidance` would guide the prompt.

        Args:
            prompt: the prompt of one image.

        Returns:
            True or False.
        """
        return self.guidance.applies_to(prompt)

    def is_reached(self, loss: float, step: int) -> bool:
        """Whether the refinement of `guidance` may stop early.

        Args:
            loss: the latest loss of one image.
            step: the denoising step.

        Returns:
            True or False.
        """
        return self.guidance.is_reached(loss, step)

    def direction(self, gradient: Tensor, prompts: Sequence[Prompt], number: int) -> Tensor:
        """A random tensor; each image's has the length of what `guidance` would move it by.

        Args:
            gradient: (B, ...), that of every image's loss on its latents.
            prompts: the prompts of the B images.
            number: of this evaluation in the generation, from 0.

        Returns:
            A tensor of the same shape.
        """
        gradient = self.guidance.direction(gradient, prompts, number)
        shape = gradient.shape[1:]
        drawn = torch.stack(
            [
                torch.randn(shape, generator=torch.Generator().manual_seed(self._seed(prompt, index, number)))
                for index, prompt in enumerate(prompts)
            ]
        ).to(gradient)
        axes = tuple(range(1, gradient.dim()))
        lengths = [each.square().sum(axes, keepdim=True).sqrt() for each in (gradient, drawn)]
        return drawn * (lengths[0] / lengths[1])

    def _seed(self, prompt: Prompt, index: int, number: int) -> int:
        name = f"{self.seed}/{prompt.text.prompt}/{index}/{number}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
