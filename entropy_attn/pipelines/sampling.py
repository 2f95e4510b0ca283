"""One batch of pictures from a pipeline, under one scale policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..integrations.diffusers import apply


def sample(
    pipe: Any,
    prompts: Sequence[str],
    *,
    size: tuple[int, int],
    scale: Any,
    seed: int,
    steps: int,
    guidance_scale: float | None = None,
    record: Any = None,
    on_step: Callable[[], None] | None = None,
) -> list[Any]:
    """Generate one picture a prompt at `size` = (height, width); the pipeline is as it was when this returns.

    Every prompt starts from its own noise seeded with `seed`, so that a picture depends on its prompt, size and seed
    only, and not on the batch it was made in. `guidance_scale=None` keeps the pipeline's default.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for _ in prompts]
    options: dict[str, Any] = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    accepted = inspect.signature(type(pipe).__call__).parameters
    if "use_resolution_binning" in accepted:  # PixArt and others would draw at a size of their own, and resize
        options["use_resolution_binning"] = False
    if on_step is not None and "callback_on_step_end" in accepted:

        def step_ended(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return tensors

        options["callback_on_step_end"] = step_ended
    elif on_step is not None and "callback" in accepted:  # as it was called before
        options |= {"callback": lambda *_: on_step(), "callback_steps": 1}
    height, width = size
    with apply(pipe, scale=scale, record=record):
        return pipe(
            list(prompts), height=height, width=width, num_inference_steps=steps, generator=generators, **options
        ).images
