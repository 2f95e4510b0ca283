"""The update of the latents, and its step size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from entropy_attn.guidance.method import checked_range
from entropy_attn.validation import expected, require_callable, require_int, require_number, require_tensor


def update_latents(latents: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
    """The update z' = z - alpha * dL/dz, computed in float32 or wider.

    Source: Kim, Esmaeili and Qiu, CVPR 2025, arXiv 2411.15236, Eq. 15.

    Args:
        latents: z (B, ...).
        gradient: dL/dz, of the same shape.
        step_size: alpha, a finite number, or a tensor that broadcasts to `latents`.

    Returns:
        z', at least float32.

    Raises:
        TypeError: `latents` or `gradient` is no tensor, or `step_size` neither a tensor nor a number.
        ValueError: the shapes differ, or `step_size` is not finite.
    """
    require_tensor("latents", latents)
    require_tensor("gradient", gradient)
    if not isinstance(step_size, Tensor):
        require_number("step_size", step_size)
    if latents.shape != gradient.shape:
        raise ValueError(f"gradient: expected shape {tuple(latents.shape)}, as latents, got {tuple(gradient.shape)}")
    wide = torch.promote_types(latents.dtype, torch.float32)
    return latents.to(wide) - step_size * gradient.to(wide)


def step_size(alpha: float, step: int, num_steps: int, step_range: tuple[float, float] = (1.0, 0.5)) -> float:
    """The step size alpha * sqrt(r_i), with r linear from `step_range[0]` to `step_range[1]` over the generation.

    Source: the authors' code of T-SAM (arXiv 2411.15236), which inherits it from Attend-and-Excite (arXiv 2301.13826).
    step_range=(1, 1) is the constant alpha of the T-SAM paper.

    Args:
        alpha: step size at r = 1.
        step: denoising step i, from 0.
        num_steps: number of denoising steps of the generation.
        step_range: (r at the first step, r at the last step), both at least 0.

    Returns:
        The step size.

    Raises:
        TypeError: a number has the wrong type, or `step_range` is no pair.
        ValueError: `step` is not from 0 to num_steps - 1, or a number is not finite or not allowed.
    """
    require_number("alpha", alpha)
    require_int("num_steps", num_steps, least=1)
    require_int("step", step, 0)
    if not 0 <= step < num_steps:
        raise ValueError(expected("step", f"an integer from 0 to {num_steps - 1}", step))
    first, last = checked_range(step_range)
    progress = step / (num_steps - 1) if num_steps > 1 else 0.0
    return alpha * math.sqrt(first + (last - first) * progress)


def input_correction(scale_model_input: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """The factor on alpha for a scheduler: 1 for most, sigma^2 + 1 for Euler and similar ones.

    Euler's latents z have variance sigma^2 + 1, and the model's input is c * z with c = 1 / sqrt(sigma^2 + 1). The
    gradient on z is then c times that on the model's input x, and a step on z moves x by c times its length. The factor
    1 / c^2 cancels both: x moves by alpha * dL/dx with every scheduler. Does not synchronize with the device.

    Args:
        scale_model_input: the scheduler's function z -> c * z at the current step.
        latents: z, for its device.

    Returns:
        1 / c^2, 0-d float32.

    Raises:
        TypeError: `scale_model_input` cannot be called, or `latents` is no tensor.
    """
    require_callable("scale_model_input", scale_model_input, "a callable (tensor) -> tensor")
    require_tensor("latents", latents)
    one = torch.ones((), dtype=torch.float32, device=latents.device)
    factor = scale_model_input(one)
    return factor.to(torch.float32).reshape(()) ** -2
