"""One attention call with checked arguments: the choice, every implementation and the launchers take this object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # out, lse, entropy, map


class AllResults(NamedTuple):
    """Everything that a call can return; None where it was not asked for."""

    out: Tensor
    lse: Tensor | None = None
    entropy: Tensor | None = None
    map: Tensor | None = None
    variance: Tensor | None = None
    max: Tensor | None = None
    mass: Tensor | None = None


@dataclass(slots=True, eq=False)  # not frozen: that takes the host longer to fill
class AttentionCall:
    """The arguments of one call, and what is wanted of it besides the output."""

    query: Tensor  # (B, H, Nq, D)
    key: Tensor  # (B, Hkv, Nk, D)
    value: Tensor  # (B, Hkv, Nk, Dv)
    attn_mask: Tensor | None = None  # as it was passed: it broadcasts to (B, H, Nq, Nk)
    is_causal: bool = False
    scale: float | Tensor | None = None  # a tensor is 0-d, (H,) or (B|1, H|1)
    return_lse: bool = False
    return_entropy: bool = False
    map_keys: tuple[int, int] | None = None  # 0 <= start < stop <= Nk
    key_scale: Tensor | None = None  # (B|1, H|1, groups of queries, Nk): factors on the products of query and key
    key_bias: Tensor | None = None  # the same, added to the logits
    key_rows: tuple[int, int] | Tensor | None = None  # queries of the one group; or (Nq,), each query's group
    return_variance: bool = False
    return_max: bool = False
    mass_keys: tuple[int, int] | None = None  # as map_keys
    mask: Tensor | None = field(
        init=False, repr=False
    )  # attn_mask as a 4-D view, one object: plans find it by identity

    def __post_init__(self) -> None:
        mask = self.attn_mask
        self.mask = mask if mask is None or mask.ndim == 4 else mask[(None,) * (4 - mask.ndim)]

    @property
    def statistics(self) -> bool:
        """Whether anything is wanted besides the output."""
        return self.return_lse or self.return_entropy or self.map_keys is not None or self.row_statistics

    @property
    def key_groups(self) -> bool:
        """Whether keys have a scale or bias of their own."""
        return self.key_scale is not None or self.key_bias is not None

    @property
    def row_statistics(self) -> bool:
        """Whether the variance, the maximum or the mass of rows is wanted."""
        return self.return_variance or self.return_max or self.mass_keys is not None

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
            or (self.key_scale is not None and self.key_scale.requires_grad)
            or (self.key_bias is not None and self.key_bias.requires_grad)
        )
