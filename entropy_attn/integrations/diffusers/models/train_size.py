"""The image size that a model was trained at, in latent cells: where each kind of model states it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Size = tuple[int, int]

# (denoiser, pipeline or None) -> latent cells (rows, columns), or None where the size is not known
TrainSize = Callable[[nn.Module, Any], Size | None]

_FACTORS = (
    "vae_scale_factor",
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
)


def latent_factor(pipe: Any) -> int:
    """Pixels per latent cell, on one side; 1 for a pipeline without an autoencoder."""
    for name in _FACTORS:
        if isinstance(factor := getattr(pipe, name, None), int):
            return factor
    return 1


def of_config(denoiser: Any, pipe: Any) -> Size | None:
    return _pair(denoiser.config.sample_size)


def of_video_config(denoiser: Any, pipe: Any) -> Size | None:
    return denoiser.config.sample_height, denoiser.config.sample_width


def of_pipeline(denoiser: Any, pipe: Any) -> Size | None:
    return _pair(getattr(pipe, "default_sample_size", None))


def of_pixels(height: int, width: int) -> TrainSize:
    """A size in pixels, which only a pipeline can turn into latent cells."""

    def latent(denoiser: Any, pipe: Any) -> Size | None:
        if pipe is None:
            return None
        factor = latent_factor(pipe)
        return height // factor, width // factor

    return latent


def _pair(size: Any) -> Size | None:
    if size is None:
        return None
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
