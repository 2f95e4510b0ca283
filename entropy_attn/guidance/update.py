"""The step that a guidance takes on the latents, and how long it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from entropy_attn.guidance.method import checked_range
from entropy_attn.validation import require_int, require_number, require_tensor


def update_latents(latents: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
    """z - alpha * dL/dz (arXiv 2411.15236, Eq. 15), in float32 at least and returned in it.

    latents, gradient: of one shape. step_size: a finite number, or a tensor that broadcasts to them.

    Raises:
        TypeError, ValueError: no tensors, or of other shapes, or a step size that is no number.
    """
    require_tensor("latents", latents)
    require_tensor("gradient", gradient)
    if not isinstance(step_size, Tensor):
        require_number("step_size", step_size)
    if latents.shape != gradient.shape:
        raise ValueError(f"gradient has shape {tuple(gradient.shape)}, latents {tuple(latents.shape)}: give one a cell")
    wide = torch.promote_types(latents.dtype, torch.float32)
    return latents.to(wide) - step_size * gradient.to(wide)


def step_size(alpha: float, step: int, num_steps: int, step_range: tuple[float, float] = (1.0, 0.5)) -> float:
    """alpha * sqrt(r_i), with r going evenly from `step_range[0]` at step 0 to `step_range[1]` at the last step.

    The released schedule, inherited from Attend-and-Excite. `step_range=(1, 1)` is the paper's constant alpha.

    Raises:
        TypeError, ValueError: what is no number, a step that is not from 0 to num_steps - 1, a negative range.
    """
    require_number("alpha", alpha)
    require_int("num_steps", num_steps, least=1)
    require_int("step", step, 0)
    if not 0 <= step < num_steps:
        raise ValueError(f"step={step}: a step from 0 to {num_steps - 1} is needed")
    first, last = checked_range(step_range)
    place = step / (num_steps - 1) if num_steps > 1 else 0.0
    return alpha * math.sqrt(first + (last - first) * place)


def input_correction(scale_model_input: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """What to multiply alpha by, a 0-d tensor: 1 for most schedulers, sigma^2 + 1 for Euler's and its relatives.

    Those keep latents of variance sigma^2 + 1 and hand the model c * z, c = 1 / sqrt(sigma^2 + 1). The gradient on z is
    then c times that on what the model sees, and a step on z is seen as c times as long: 1 / c^2 undoes both, so that
    the model's input moves by alpha times its own gradient whatever the scheduler.

    `scale_model_input` is the scheduler's, for the current step. Nothing here waits for the device.
    """
    if not callable(scale_model_input):
        raise TypeError(f"scale_model_input={scale_model_input!r}: a callable from a tensor to one is needed")
    require_tensor("latents", latents)
    one = torch.ones((), dtype=torch.float32, device=latents.device)
    factor = scale_model_input(one)
    return factor.to(torch.float32).reshape(()) ** -2
