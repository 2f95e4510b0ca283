"""One attention call with checked arguments: the choice, every implementation and the launchers take this object."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # out, lse, entropy, map


@dataclass(slots=True, eq=False)  # not frozen: that takes the host longer to fill
class AttentionCall:
    """The arguments of one call, and what is wanted of it besides the output."""

    query: Tensor  # (B, H, Nq, D)
    key: Tensor  # (B, Hkv, Nk, D)
    value: Tensor  # (B, Hkv, Nk, Dv)
    attn_mask: Tensor | None = None  # as it was passed: it broadcasts to (B, H, Nq, Nk)
    is_causal: bool = False
    scale: float | Tensor | None = None  # a tensor is 0-d or (H,)
    return_lse: bool = False
    return_entropy: bool = False
    map_keys: tuple[int, int] | None = None  # 0 <= start < stop <= Nk
    mask: Tensor | None = field(
        init=False, repr=False
    )  # attn_mask as a 4-D view, one object: plans find it by identity

    def __post_init__(self) -> None:
        mask = self.attn_mask
        self.mask = mask if mask is None or mask.ndim == 4 else mask[(None,) * (4 - mask.ndim)]

    @property
    def statistics(self) -> bool:
        """Whether anything is wanted besides the output."""
        return self.return_lse or self.return_entropy or self.map_keys is not None

    @property
    def map_range(self) -> tuple[int, int]:
        """`map_keys` of a call that has them."""
        if self.map_keys is None:
            raise ValueError("map_keys: expected (start, stop), got None")
        return self.map_keys

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a head of key or value."""
        heads = self.query.shape[1]
        return self.key.shape[1] != heads or self.value.shape[1] != heads

    @property
    def needs_gradient(self) -> bool:
        """Whether autograd records the call."""
        return torch.is_grad_enabled() and (
            self.query.requires_grad
            or self.key.requires_grad
            or self.value.requires_grad
            or (self.attn_mask is not None and self.attn_mask.requires_grad)
            or (isinstance(self.scale, Tensor) and self.scale.requires_grad)
        )
