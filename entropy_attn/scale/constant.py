"""Policies that ignore the image size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from entropy_attn.display import Settings
from entropy_attn.scale.call import CallInfo
from entropy_attn.validation import expected, require_bool, require_number


@dataclass(frozen=True)
class Fixed(Settings):
    """The same scale for every call: `value`, or 1 / sqrt(D) for None.

    Source: 1 / sqrt(D) is the scale of Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762,
    Eq. 1.

    Args:
        value: the scale, any finite number; 0 makes attention uniform. None is 1 / sqrt(D).

    Raises:
        TypeError: `value` is no number.
        ValueError: `value` is not finite.
    """

    value: float | None = None

    def __post_init__(self) -> None:
        if self.value is not None:
            require_number("value", self.value)

    def __call__(self, info: CallInfo) -> float:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            The scale.
        """
        return 1.0 / math.sqrt(info.head_dim) if self.value is None else float(self.value)


@dataclass(frozen=True)
class Constant(Settings):
    """A constant factor on the default scale: factor / sqrt(D).

    The factor is an inverse temperature: above 1 attention is sharper, below 1 flatter. ComfyUI's attention-temperature
    nodes divide the logits by such a number.

    Args:
        factor: a number, or a tuple of H numbers, one per head, for layers with H heads (chosen with `Layers`).
        allow_nonpositive: accept 0, which makes attention uniform, and negative factors, which invert it: the least
            similar key gets the most weight.

    Raises:
        TypeError: `factor` is neither a number nor a tuple of numbers, or `allow_nonpositive` is no bool.
        ValueError: a factor is not finite, or not positive without `allow_nonpositive`; or the tuple is empty.
    """

    factor: float | tuple[float, ...]
    allow_nonpositive: bool = False

    def __post_init__(self) -> None:
        require_bool("allow_nonpositive", self.allow_nonpositive)
        if isinstance(self.factor, (tuple, list)):
            object.__setattr__(self, "factor", tuple(self.factor))
            if not self.factor:
                raise ValueError(expected("factor", "a number or at least one number", self.factor))
        for value in self.factor if isinstance(self.factor, tuple) else (self.factor,):
            require_number("factor", value)
            if not value > 0 and not self.allow_nonpositive:
                raise ValueError(
                    f"{expected('factor', 'a number > 0', value)}; allow_nonpositive=True accepts 0 (uniform "
                    "attention) and negative numbers (inverted attention)"
                )

    def __call__(self, info: CallInfo) -> float | torch.Tensor:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            The scale, or one per head as a float32 tensor (H,).

        Raises:
            ValueError: `factor` has another length than the layer has heads.
        """
        default = 1.0 / math.sqrt(info.head_dim)
        if not isinstance(self.factor, tuple):
            return self.factor * default
        if len(self.factor) != info.num_heads:
            raise ValueError(
                f"factor: expected {info.num_heads} numbers, one per head of layer {info.layer!r}, got "
                f"{len(self.factor)}; choose layers with Layers({{regex: policy}})"
            )
        return torch.tensor(self.factor, dtype=torch.float32) * default
