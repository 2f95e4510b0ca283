"""The model on which neglect remains: the embedded UNet, whose only way to the text are maps of 16 x 16 tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.guidance.neglect.captions import tokens_of
from entropy_attn.integrations.diffusers.models import halvings


def coarse_cross_attention(unet: nn.Module) -> dict[str, nn.Module]:
    """The cross-attention layers of fewer than 256 tokens, by name."""
    return {
        name: module for name, module in unet.named_modules() if name.endswith(".attn2") and halvings(unet, name) > 0
    }


def silence_coarse(unet: nn.Module) -> None:
    """Make their output zero, and keep it so in training: what the image has of the text comes by the other layers.

    The weights say so, not the configuration, so the model stays one that diffusers loads.
    """
    for module in coarse_cross_attention(unet).values():
        nn.init.zeros_(module.to_out[0].weight)
        nn.init.zeros_(module.to_out[0].bias)
        module.requires_grad_(False)


def cut_at_caption(pipe: Any, objects: int) -> None:
    """Encode captions of so many objects without padding. A longer one would be cut, a shorter one padded."""
    pipe.tokenizer.model_max_length = tokens_of(objects)
