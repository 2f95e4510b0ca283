"""What `apply` was given: the denoiser, its pipeline, and the size that the model was trained at."""

from __future__ import annotations

from typing import Any

import torch._dynamo
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.models import MODELS, find_model, latent_factor, model_of

Size = tuple[int, int]


def resolve_target(target: object) -> tuple[ModelMixin, DiffusionPipeline | None]:
    """The denoiser of a pipeline with that pipeline, or a denoiser alone with None.

    Raises:
        Unroutable: a pipeline or module without a denoiser of `MODELS`, with two denoisers, or compiled already.
        TypeError: neither a pipeline nor a module.
    """
    if isinstance(target, DiffusionPipeline):
        parts = target.components
        found = parts.get("unet") or parts.get("transformer") or parts.get("prior")
        if parts.get("transformer_2") is not None:
            reasons = ["it has two denoisers: apply to each, pipe.transformer and pipe.transformer_2"]
            raise Unroutable(type(target).__name__, reasons)
        if found is not None and find_model(found) is not None:
            return found, target
        denoiser = "no denoiser that is known here" if found is None else f"a {type(found).__name__} as its denoiser"
        raise Unroutable(type(target).__name__, [f"it has {denoiser}", _remedy(found)])
    if find_model(target) is not None:
        return target, None
    if isinstance(target, nn.Module):
        raise Unroutable(type(target).__name__, [_remedy(target)])
    raise TypeError(f"pipe_or_denoiser: expected a diffusers pipeline or denoiser, got {target!r}")


def _remedy(found: object) -> str:
    # torch.compile(model) keeps the model's call as it was before anything is routed.
    if isinstance(found, torch._dynamo.OptimizedModule):
        return "apply to the model itself, then compile it"
    return "expected one of " + ", ".join(model.denoiser for model in MODELS)


def denoiser_of(pipe: Any) -> Any:
    """The UNet or transformer of a pipeline, whether it can be routed or not.

    Raises:
        ValueError: the pipeline has neither.
    """
    denoiser = getattr(pipe, "unet", None)
    if denoiser is None:
        denoiser = getattr(pipe, "transformer", None)
    if denoiser is None:
        raise ValueError(f"{type(pipe).__name__} has neither a UNet nor a transformer")
    return denoiser


def pixels_a_token(pipe: Any) -> int:
    """Pixels per side of one token, for a pipeline whose layers all see the image alike."""
    denoiser = denoiser_of(pipe)
    return latent_factor(pipe) * model_of(denoiser).cells_a_token(denoiser.config)


def train_size(pipe: Any) -> Size:
    """(height, width) in pixels of the images that the model was trained on.

    Raises:
        ValueError: neither the pipeline nor its configuration states it.
    """
    denoiser = denoiser_of(pipe)
    model, factor = model_of(denoiser), latent_factor(pipe)
    latent = model.train_size(denoiser, pipe)
    if latent is None:
        raise ValueError(f"{type(pipe).__name__} does not state the size at which it was trained: give the sizes")
    return latent[0] * factor, latent[1] * factor


def latent_train_size(
    denoiser: ModelMixin, pipe: DiffusionPipeline | None, train_size: int | Size | None
) -> Size | None:
    """The training size in latent cells, from `train_size` as given to `apply`, or as the model states it."""
    if train_size is None:
        return model_of(denoiser).train_size(denoiser, pipe)
    size = (train_size, train_size) if not isinstance(train_size, (tuple, list)) else tuple(train_size)
    if len(size) != 2 or any(type(length) is not int or length < 1 for length in size):
        raise ValueError(f"train_size: expected a positive int or a pair (height, width) of them, got {train_size!r}")
    if pipe is None:
        return size
    factor = latent_factor(pipe)
    if any(length % factor for length in size):
        raise ValueError(f"train_size: expected multiples of {factor} pixels, got {train_size!r}")
    return size[0] // factor, size[1] // factor
