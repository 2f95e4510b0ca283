"""A case of `tiny_denoisers`: a tiny denoiser, its arguments, and what its layers attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

TEXT = 6


@dataclass(frozen=True)
class Layer:
    """What the layers whose names match `pattern` attend to.

    Attributes:
        kind: "self", "cross", "joint" or "text".
        image: image tokens among the keys.
        text: text tokens among the keys.
        train: image tokens at the training size.
        order: position of the text in joint attention.
        text_queries: text tokens among the queries.
    """

    pattern: str
    kind: str
    image: int
    text: int = 0
    train: int | None = None
    order: str = ""
    text_queries: int = 0
    prompt: int = 0  # keys of an image prompt


@dataclass(frozen=True)
class Case:
    """One denoiser; `call` and `layers` give its arguments and its layers for a height and width in latent cells."""

    row: str
    config: dict[str, Any]
    call: Callable[[int, int], dict[str, Any]]
    layers: Callable[[int, int], tuple[Layer, ...]]
    train_size: int | tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ((8, 8), (12, 8))
    masked: bool = False
    frames: int = 1
    outside: int = 0  # attention calls outside of attention layers, which come first

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        denoiser = getattr(diffusers, self.row)(**self.config).eval()
        with torch.no_grad():
            for name, weight in denoiser.named_parameters():
                if name.endswith(("to_q.weight", "to_k.weight")):
                    weight.mul_(3.0)  # spread the logits, so that the scale matters
                elif not weight.any():
                    weight.normal_(std=0.1)  # weights initialized to zero would hide the attention
        return denoiser


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def steps(batch: int = 2) -> torch.Tensor:
    return torch.full((batch,), 10)


def text_mask(length: int = TEXT, batch: int = 2) -> torch.Tensor:
    """A mask in which the text of the last sample is two positions shorter."""
    mask = torch.ones(batch, length)
    mask[-1, -2:] = 0
    return mask


def ids(height: int, width: int, columns: int = 3) -> torch.Tensor:
    found = torch.zeros(height // 2, width // 2, columns)
    found[..., 1] += torch.arange(height // 2)[:, None]
    found[..., 2] += torch.arange(width // 2)[None]
    return found.reshape(-1, columns)


def self_and_cross(height: int, width: int, patch: int = 2, train: int | None = None, text: int = TEXT):
    tokens = (height // patch) * (width // patch)
    return (
        Layer(r"attn1$", "self", tokens, train=train),
        Layer(r"attn2$", "cross", tokens, text),
    )


def joint(height: int, width: int, order: str, *, patch: int = 2, train: int | None = None, text: int = TEXT):
    tokens = (height // patch) * (width // patch)
    return Layer(r"", "joint", tokens, text, train=train, order=order, text_queries=text)


HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
