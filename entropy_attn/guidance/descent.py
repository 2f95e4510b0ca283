"""One guided step: the losses of a batch of pictures, their gradient, and the latents after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .method import Guidance, Prompt
from .similarity import no_autocast
from .update import update_latents


class Descent:
    """Follows one guidance through one generation.

    losses: (step, loss of every picture (B,)) of each evaluation in order, on the device.
    maps: (B, h, w, s) of the latest evaluation, without gradient; None before the first.
    """

    def __init__(self, guidance: Guidance, prompts: Sequence[Prompt]):
        self.guidance = guidance
        self.prompts = list(prompts)  # one a picture
        self.losses: list[tuple[int, Tensor]] = []
        self.maps: Tensor | None = None
        self._previous: Tensor | None = None  # the maps of the guided step before

    def step(
        self, latents: Tensor, step: int, step_size: float | Tensor, maps_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The latents (B, ...) to take this step from, float32; detached.

        maps_of: from latents in float32 to their maps (B, h, w, s), with the graph.
        """
        latents = latents.detach().to(torch.promote_types(latents.dtype, torch.float32))
        refinements = self.guidance.refine_iters if step in self.guidance.refine_at else 0
        for _ in range(refinements):
            gradient, losses = self._gradient(latents, step, maps_of)
            if self.guidance.waits:
                going = [not self.guidance.is_reached(loss, step) for loss in losses.tolist()]
                if not any(going):
                    break
                mask = torch.tensor(going, device=latents.device).view(-1, *(1 for _ in latents.shape[1:]))
                gradient = torch.where(mask, gradient, 0.0)
            latents = update_latents(latents, gradient, step_size)
        gradient, _ = self._gradient(latents, step, maps_of)
        self._previous = self.maps
        return update_latents(latents, gradient, step_size)

    def _gradient(self, latents: Tensor, step: int, maps_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Of the sum of the losses, which is each picture's own gradient, for no picture looks at another."""
        with torch.inference_mode(False), torch.enable_grad():
            latents = latents.clone().requires_grad_()
            maps = maps_of(latents)
            with no_autocast(latents.device.type):
                losses = torch.stack([self._loss(maps[index], index) for index in range(len(maps))])
                total = losses.sum()
            gradient = torch.zeros_like(latents)
            if total.requires_grad:  # not where a loss does not look at the maps
                (gradient,) = torch.autograd.grad(total, latents)
        self.maps = maps.detach()
        self.losses.append((step, losses.detach()))
        return gradient, losses.detach()

    def _loss(self, maps: Tensor, index: int) -> Tensor:
        prompt = self.prompts[index]
        if not self.guidance.applies_to(prompt):
            return maps.new_zeros(())
        if self._previous is not None:
            prompt = replace(prompt, previous=self._previous[index])
        loss = self.guidance.loss(maps, prompt)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            raise TypeError(f"guidance={self.guidance!r}: its loss must be a 0-d floating-point tensor, got {loss!r}")
        return loss.to(maps.dtype)
