"""The cross-attention maps of one forward pass, with the graph that leads to them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from entropy_attn.recorders.base import Recorder, Request
from entropy_attn.scale import CallInfo


class Enough(Exception):
    """Raised inside the denoiser once every map is there: what comes after them has no part in their gradient."""


class GraphMaps(Recorder):
    """Keeps the map of each of `layers` over a text of `length` positions, and raises `Enough` after the last."""

    def __init__(self, layers: Collection[str], length: int):
        super().__init__(None)
        self.layers = frozenset(layers)
        self.length = length
        self._maps: dict[str, Tensor] = {}

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Request:
        # A layer may attend again, to an IP-Adapter's picture.
        chosen = info.layer in self.layers and info.layer not in self._maps
        return (0, self.length) if chosen and info.kind == "cross" and info.seqlen_k == self.length else None

    def record(
        self,
        info: CallInfo,
        scale: float | Tensor,
        measured: Tensor,
        branches: tuple[str, ...],
        latent_size: tuple[int, int],
    ) -> None:
        self._maps[info.layer] = measured
        if len(self._maps) == len(self.layers):
            raise Enough

    def mean(self, size: tuple[int, int]) -> Tensor:
        """A of every picture (batch, h, w, length), the mean over the layers (arXiv 2411.15236, Eq. 6), float32."""
        if missing := sorted(self.layers - set(self._maps)):
            raise ValueError(f"layer {missing[0]!r} attended to no text of {self.length} positions")
        maps = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in self._maps.values()]
        return torch.stack(maps).mean(0).unflatten(1, size)
