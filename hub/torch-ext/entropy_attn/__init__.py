"""Fused attention for text-to-image diffusion, with a per-call softmax scale and the attention entropy."""

from __future__ import annotations

from .errors import Unsupported
from .ops.api import AttentionOutput, attention, scaled_dot_product_attention, unsupported_reasons

__all__ = [
    "AttentionOutput",
    "Unsupported",
    "attention",
    "scaled_dot_product_attention",
    "unsupported_reasons",
]
