"""The picture sizes that a pipeline can take, and the one that its model was trained at."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from entropy_attn.integrations.diffusers.models import Model, latent_factor, model_of
from entropy_attn.integrations.diffusers.pipeline_calls import call_parameters as class_parameters
from entropy_attn.integrations.diffusers.target import denoiser_of, pixels_a_token, train_size
from entropy_attn.pipelines.memory import check_memory


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's call takes, by name; a class that passes everything on to its base is looked through."""
    return class_parameters(type(pipe))


def size_multiple(pipe: Any) -> int:
    """Both sides of a picture must be a multiple of this: pixels a latent cell, and cells that the denoiser joins.

    A UNet halves at every downsampling, a transformer takes patches. diffusers' own pipelines also insist on a multiple
    of 8, whatever the VAE.
    """
    denoiser, model = _denoiser(pipe)
    if model.halves:
        joined = 2 ** sum(getattr(block, "downsamplers", None) is not None for block in denoiser.down_blocks)
    else:
        joined = model.cells_a_token(denoiser.config)
    return math.lcm(8, latent_factor(pipe) * joined)


def fixed_size(pipe: Any) -> tuple[int, int] | None:
    """The only size that a pipeline draws, where its call takes none; else None."""
    return None if {"height", "width"} <= set(call_parameters(pipe)) else train_size(pipe)


def check_size(pipe: Any, size: tuple[int, int], pictures: int = 1) -> None:
    """Raise `ValueError` for a (height, width) that the pipeline cannot generate, and say why.

    That is a size that is no multiple of what is needed, for which the nearest is named, one that needs more memory
    than there is for so many pictures at once, and any but its own for a pipeline that draws one size.
    """
    only = fixed_size(pipe)
    if only is not None and tuple(size) != only:
        name = type(pipe).__name__
        raise ValueError(f"size {size[0]}x{size[1]}: {name} draws {only[0]}x{only[1]} px and nothing else")
    multiple = size_multiple(pipe)
    if only is None and any(side < 1 or side % multiple for side in size):
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        raise ValueError(f"size {size[0]}x{size[1]}: both sides must be multiples of {multiple} px, for example {near}")
    _check_positions(pipe, size)
    check_memory(pipe, size, pictures)


def _check_positions(pipe: Any, size: tuple[int, int]) -> None:
    """No larger than a model's table of positions: of a side in Stable Diffusion 3, of a square in AuraFlow."""
    denoiser, model = _denoiser(pipe)
    most = getattr(denoiser.config, "pos_embed_max_size", None)
    if not most or model.halves:
        return
    side = math.isqrt(most) if model.denoiser == "AuraFlowTransformer2DModel" else most
    cell = pixels_a_token(pipe)
    if max(size) > side * cell:
        raise ValueError(
            f"size {size[0]}x{size[1]}: {type(denoiser).__name__} has positions for {side}x{side} tokens, so no side "
            f"may be more than {side * cell} px"
        )


def _denoiser(pipe: Any) -> tuple[Any, Model]:
    """The denoiser and its row of the table."""
    denoiser = denoiser_of(pipe)
    return denoiser, model_of(denoiser)
