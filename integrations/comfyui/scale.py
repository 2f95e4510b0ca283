"""The node's settings as a scale of a chain."""

from __future__ import annotations

import math
from typing import Any

from entropy_attn.routing.calls import LayerSelection
from entropy_attn.scale import LogN, LogNoRoot
from entropy_attn.validation import expected, require_int, require_one_of

from .chain import Scale
from .families import LATENT_CELL, family_of, train_pixels_of

POLICIES = {"logn": LogN, "lognoroot": LogNoRoot}
LAYERS = ("self", "cross")


def scale_of(
    model: Any,
    *,
    policy: str = "logn",
    layers: str = "self",
    train_size: int = 0,
    train_tokens: int = 0,
    strength: float = 1.0,
    direction: str = "both",
    count_text_tokens: bool = False,
) -> Scale:
    """The scale that the node's settings ask for.

    Args:
        model: the ModelPatcher it is for.
        policy: "logn" is the factor sqrt(ln N / ln T), "lognoroot" ln N / ln T.
        layers: "self" (image tokens among the keys: self- and joint attention) or "cross".
        train_size: side of the training images in pixels; 0 takes it from the class of the model.
        train_tokens: T, the same for all layers; 0 computes it for each layer from train_size.
        strength, direction, count_text_tokens: as in `entropy_attn.scale.LogN`.

    Raises:
        TypeError, ValueError: an argument has a type or value that is not allowed, or is needed and not given.
    """
    require_one_of("policy", policy, tuple(POLICIES))
    require_one_of("layers", layers, LAYERS)
    require_int("train_size", train_size, 0)
    require_int("train_tokens", train_tokens, 0)
    if train_size and train_tokens:
        raise ValueError(f"train_tokens: expected 0 with train_size={train_size}, got {train_tokens}: T is one of both")
    if layers == "cross" and not train_tokens:
        raise ValueError(
            expected(
                "train_tokens", "for layers='cross' the text's tokens in training, which no size says", train_tokens
            )
        )
    chosen = POLICIES[policy](
        train_tokens=train_tokens or "auto",
        strength=strength,
        direction=direction,
        count_text_tokens=count_text_tokens,
    )
    if train_tokens:
        return Scale(chosen, LayerSelection(layers), None, None)
    pixels = train_size or train_pixels_of(model)
    side = math.ceil(pixels / LATENT_CELL)
    return Scale(chosen, LayerSelection(layers), (side, side), family_of(model).image_tokens((side, side)))
