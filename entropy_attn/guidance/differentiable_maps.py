"""The maps of the text of one forward pass, in cross-attention or joint attention, with their graph."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from entropy_attn.recorders.base import Recorder, Request
from entropy_attn.scale import CallInfo


class Enough(Exception):
    """Raised inside the denoiser once every map is recorded: later layers do not affect their gradient."""


class GraphMaps(Recorder):
    """Keeps the map of each of `layers` over a text of `length` positions, and raises `Enough` after the last."""

    def __init__(self, layers: Collection[str], length: int):
        super().__init__(None)
        self.layers = frozenset(layers)
        self.length = length
        self._maps: dict[str, Tensor] = {}

    def wants(self, info: CallInfo, latent_size: tuple[int, int]) -> Request:
        # A layer may attend a second time, to an IP-Adapter's image.
        chosen = info.layer in self.layers and info.layer not in self._maps
        text = info.text_tokens if info.kind == "joint" else info.seqlen_k
        return (0, self.length) if chosen and info.kind != "self" and text == self.length else None

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
        """A (B, h, w, length) float32, the mean over the layers (arXiv 2411.15236, Eq. 6)."""
        if missing := sorted(self.layers - set(self._maps)):
            raise ValueError(f"layer {missing[0]!r}: expected attention to {self.length} text tokens, got none")
        maps = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in self._maps.values()]
        return torch.stack(maps).mean(0).unflatten(1, size)
