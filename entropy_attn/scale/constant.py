"""Policies that do not look at the size of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from entropy_attn.scale.call import CallInfo
from entropy_attn.validation import require_bool, require_finite


@dataclass(frozen=True)
class Fixed:
    """The same scale for every call; `value=None` is the usual 1/sqrt(head_dim).

    Any finite number is taken, as by `attention` itself: 0 makes attention uniform.
    """

    value: float | None = None

    def __post_init__(self) -> None:
        if self.value is not None:
            require_finite("value", self.value)

    def __call__(self, info: CallInfo) -> float:
        return 1.0 / math.sqrt(info.head_dim) if self.value is None else float(self.value)


@dataclass(frozen=True)
class Constant:
    """The usual scale times a number: factor / sqrt(head_dim), at every size.

    An inverse temperature: above 1 attention is sharper, below 1 flatter. ComfyUI's attention-temperature nodes divide
    the logits by such a number.

    factor: the number, or a tuple of one a head for layers with that many heads, as chosen with `Layers`.
    allow_nonpositive: take zero, which makes attention uniform, and negative numbers, which turn it over so that what
        fits least is attended to most. Either is rather a slip than a wish, and is refused otherwise.
    """

    factor: float | tuple[float, ...]
    allow_nonpositive: bool = False

    def __post_init__(self) -> None:
        require_bool("allow_nonpositive", self.allow_nonpositive)
        if isinstance(self.factor, (tuple, list)):
            object.__setattr__(self, "factor", tuple(self.factor))
            if not self.factor:
                raise ValueError("factor=(): at least one number is needed")
        for value in self.factor if isinstance(self.factor, tuple) else (self.factor,):
            require_finite("factor", value)
            if not value > 0 and not self.allow_nonpositive:
                raise ValueError(
                    f"factor={value!r}: more than 0 is needed; allow_nonpositive=True takes 0, which makes attention "
                    "uniform, and negative numbers, which turn it over"
                )

    def __call__(self, info: CallInfo) -> float | torch.Tensor:
        usual = 1.0 / math.sqrt(info.head_dim)
        if not isinstance(self.factor, tuple):
            return self.factor * usual
        if len(self.factor) != info.num_heads:
            raise ValueError(
                f"Constant(factor=...) has {len(self.factor)} numbers, but layer {info.layer!r} has {info.num_heads} "
                "heads: choose layers with Layers({regex: policy})"
            )
        return torch.tensor(self.factor, dtype=torch.float32) * usual
