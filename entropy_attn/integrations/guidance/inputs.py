"""The latents among the arguments of a denoiser's call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from entropy_attn.integrations.diffusers.models import model_of


def named(denoiser: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a denoiser's call by name."""
    parameters = tuple(inspect.signature(type(denoiser).forward).parameters)[1:]
    return dict(zip(parameters, args, strict=False)) | dict(kwargs)


def latents_in(transformer: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The latents that a transformer is called with: (B, C, H, W), or packed (B, tokens, C).

    Without what an editing pipeline appends to them: further channels, and the tokens of reference images.
    """
    model, config = model_of(transformer), transformer.config
    given = arguments[model.latents]
    channels = config.out_channels or config.in_channels
    if given.dim() == 4:
        return given[:, :channels]
    image = model.image(arguments, config)
    return given[:, : given.shape[1] - image.references, :channels]


def with_latents(args: tuple, kwargs: dict[str, Any], latents: Tensor, name: str) -> tuple[tuple, dict[str, Any]]:
    """The denoiser's call with other latents; what a pipeline appends to them stays.

    name: of the argument with the latents, which is the first one.
    """
    given = args[0] if args else kwargs[name]
    if given.dim() == 3:  # packed
        latents = _appended(latents, given[:, : latents.shape[1]], 2)
    latents = _appended(latents, given, 1)
    return ((latents, *args[1:]), kwargs) if args else (args, {**kwargs, name: latents})


def _appended(latents: Tensor, given: Tensor, dim: int) -> Tensor:
    """The latents, and what follows them along `dim` in `given`."""
    length = latents.shape[dim]
    if given.shape[dim] == length:
        return latents
    return torch.cat([latents, given.narrow(dim, length, given.shape[dim] - length)], dim=dim)
