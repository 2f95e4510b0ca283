"""One guided step: the losses of a batch of images, their gradient, and the updated latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.update import update_latents
from entropy_attn.ops.autocast import no_autocast

# The largest gradient on an image's maps is scaled to this magnitude before it goes back through the model. Without
# scaling, most of a float16 gradient underflows (below 6e-8), and all of it at a small loss; 256 leaves as much room
# below as above. The later magnitudes are for models so steep that it overflows.
MAGNITUDES = (2.0**8, 1.0, 2.0**-8)


class Descent:
    """Follows one guidance through one generation.

    Attributes:
        losses: (step, losses (B,) on the device) of each evaluation, in order.
        maps: (B, h, w, s) of the latest evaluation, detached; None before the first.
    """

    def __init__(self, guidance: Guidance, prompts: Sequence[Prompt]):
        self.guidance = guidance
        self.prompts = list(prompts)  # one per image
        self.losses: list[tuple[int, Tensor]] = []
        self.maps: Tensor | None = None
        self._previous: Tensor | None = None  # the maps of the previous guided step

    def step(
        self, latents: Tensor, step: int, step_size: float | Tensor, maps_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The updated latents (B, ...) before this step, float32, detached.

        `maps_of` maps float32 latents to maps (B, h, w, s), with the graph.
        """
        narrow = _is_float16(latents)
        latents = latents.detach().to(torch.promote_types(latents.dtype, torch.float32))
        refinements = self.guidance.refine_iters if step in self.guidance.refine_at else 0
        for _ in range(refinements):
            gradient, losses = self._gradient(latents, step, maps_of, narrow)
            if self.guidance.waits:
                going = [not self.guidance.is_reached(loss, step) for loss in losses.tolist()]
                if not any(going):
                    break
                mask = torch.tensor(going, device=latents.device).view(-1, *(1 for _ in latents.shape[1:]))
                gradient = torch.where(mask, gradient, 0.0)
            latents = update_latents(latents, gradient, step_size)
        gradient, _ = self._gradient(latents, step, maps_of, narrow)
        self._previous = self.maps
        return update_latents(latents, gradient, step_size)

    def _gradient(
        self, latents: Tensor, step: int, maps_of: Callable[[Tensor], Tensor], narrow: bool
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the sum of the losses. It is each image's gradient, because images do not interact."""
        for magnitude in MAGNITUDES if narrow else MAGNITUDES[:1]:
            with torch.inference_mode(False), torch.enable_grad():
                start = latents.clone().requires_grad_()
                maps = maps_of(start)
                losses, slope = self._losses(maps.detach())
                gradient = _through(maps, start, slope, magnitude)
            if not narrow or gradient.isfinite().all():  # synchronizes with the device
                break
        else:
            raise FloatingPointError(
                f"guidance {type(self.guidance).__name__}: its gradient at step {step} is not finite in float16: load "
                "the pipeline in bfloat16 or float32"
            )
        gradient = self.guidance.direction(gradient, self.prompts, len(self.losses))
        self.maps = maps.detach()
        self.losses.append((step, losses))
        return gradient, losses

    def _losses(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (B,), and the gradient of their sum on the maps."""
        maps = maps.requires_grad_()
        with no_autocast(maps.device.type):
            losses = torch.stack([self._loss(maps[index], index) for index in range(len(maps))])
            slope = torch.zeros_like(maps)
            if losses.requires_grad:  # False if no loss depends on the maps
                (slope,) = torch.autograd.grad(losses.sum(), maps)
        return losses.detach(), slope

    def _loss(self, maps: Tensor, index: int) -> Tensor:
        prompt = self.prompts[index]
        if not self.guidance.applies_to(prompt):
            return maps.new_zeros(())
        if self._previous is not None:
            prompt = replace(prompt, previous=self._previous[index])
        loss = self.guidance.loss(maps, prompt)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            raise TypeError(f"guidance {self.guidance!r}: its loss must be a 0-d floating-point tensor, got {loss!r}")
        return loss.to(maps.dtype)


def _through(maps: Tensor, latents: Tensor, slope: Tensor, magnitude: float) -> Tensor:
    """Propagate `slope`, a gradient on the maps, back through the model to the latents.

    Each image's slope is scaled to this magnitude by a power of two, which is exact, and scaled back afterwards.
    """
    if not maps.requires_grad:
        return torch.zeros_like(latents)
    exponent = slope.abs().amax(tuple(range(1, slope.dim()))).div(magnitude).frexp().exponent.clamp(-100, 100)
    (gradient,) = torch.autograd.grad(maps, latents, slope * _power_of_two(-exponent, slope))
    return gradient * _power_of_two(exponent, gradient)


def _power_of_two(exponent: Tensor, like: Tensor) -> Tensor:
    """2^exponent (B,), shaped to multiply `like` (B, ...). Built from bits, so that no device rounds it."""
    exact = (exponent.to(torch.int32) + 127).bitwise_left_shift(23).view(torch.float32)
    return exact.to(like.dtype).view(-1, *(1 for _ in like.shape[1:]))


def _is_float16(latents: Tensor) -> bool:
    """Whether the model computes in float16."""
    kind = latents.device.type
    cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    return cast or latents.dtype is torch.float16
