"""The image sizes that a pipeline supports, and the training size of its model."""

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
    """The parameters of the pipeline's call, also where a subclass passes all of them to its parent."""
    return class_parameters(type(pipe))


def size_multiple(pipe: Any) -> int:
    """The number of which both sides of an image should be a multiple, so that no layer rounds.

    It is the pixels per latent cell times the cells that the denoiser merges: by the downsampling of a UNet, by the
    patches of a transformer. The pipelines of diffusers also require a multiple of 8, and some, such as Lumina 2's, of
    the factor of their image processor.
    """
    denoiser, model = _denoiser(pipe)
    if model.halves:
        joined = 2 ** sum(getattr(block, "downsamplers", None) is not None for block in denoiser.down_blocks)
    else:
        joined = model.cells_a_token(denoiser.config)
    processor = getattr(getattr(pipe, "image_processor", None), "config", {})
    return math.lcm(8, latent_factor(pipe) * joined, processor.get("vae_scale_factor", 1))


def fixed_size(pipe: Any) -> tuple[int, int] | None:
    """The only size of a pipeline whose call takes none; None for other pipelines."""
    return None if {"height", "width"} <= set(call_parameters(pipe)) else train_size(pipe)


def check_size(pipe: Any, size: tuple[int, int], pictures: int = 1) -> None:
    """Refuse a size that the pipeline cannot generate.

    Args:
        pipe: a diffusers pipeline.
        size: (height, width) in pixels.
        pictures: number of images in one batch.

    Raises:
        ValueError: a side is no multiple of `size_multiple`, or in a UNet of 8 and of the pixels per latent cell; the
            nearest size is named. Or the size needs more memory than the device has; or the pipeline has one size only,
            and this is another.
    """
    only = fixed_size(pipe)
    if only is not None and tuple(size) != only:
        name = type(pipe).__name__
        raise ValueError(f"size {size[0]}x{size[1]}: {name} generates {only[0]}x{only[1]} px only")
    # A UNet of diffusers rounds up when it halves an odd length, and tells each level its size on the way up: 224 px
    # of Stable Diffusion, a size in Jin et al., are 28, 14, 7 and 4 cells
    rounds = _denoiser(pipe)[1].denoiser == "UNet2DConditionModel"
    multiple = math.lcm(8, latent_factor(pipe)) if rounds else size_multiple(pipe)
    if only is None and any(side < 1 or side % multiple for side in size):
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        raise ValueError(f"size {size[0]}x{size[1]}: both sides must be multiples of {multiple} px, for example {near}")
    _check_positions(pipe, size)
    check_memory(pipe, size, pictures)


def _check_positions(pipe: Any, size: tuple[int, int]) -> None:
    """Refuse more tokens than position embeddings: per side in Stable Diffusion 3, in total in AuraFlow."""
    denoiser, model = _denoiser(pipe)
    most = getattr(denoiser.config, "pos_embed_max_size", None)
    if not most or model.halves:
        return
    side = math.isqrt(most) if model.denoiser == "AuraFlowTransformer2DModel" else most
    cell = pixels_a_token(pipe)
    if max(size) > side * cell:
        raise ValueError(
            f"size {size[0]}x{size[1]}: {type(denoiser).__name__} has position embeddings for {side}x{side} tokens, so "
            f"no side may exceed {side * cell} px"
        )


def _denoiser(pipe: Any) -> tuple[Any, Model]:
    """The denoiser and its row of the table."""
    denoiser = denoiser_of(pipe)
    return denoiser, model_of(denoiser)
