"""Twelve memory layouts of a model's (B, H, N, D) tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

B, H, N, D = 2, 3, 9, 16


def _of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "heads outside": lambda: _of(B, H, N, D),
    "heads inside": lambda: _of(B, N, H, D).transpose(1, 2),
    "sequence first": lambda: _of(N, B, H, D).permute(1, 2, 0, 3),
    "heads first": lambda: _of(H, B, N, D).transpose(0, 1),
    "columns outside": lambda: _of(B, H, D, N).mT,
    "channels last": lambda: _of(B, H, N, D).to(memory_format=torch.channels_last),
    "heads expanded": lambda: _of(B, 1, N, D).expand(B, H, N, D),
    "batch expanded": lambda: _of(1, H, N, D).expand(B, H, N, D),
    "tokens expanded": lambda: _of(B, H, 1, D).expand(B, H, N, D),
    "part of packed": lambda: _of(B, N, 3, H, D).transpose(1, 3)[:, :, 1],
    "sliced": lambda: _of(B, H, 2 * N, D + 8)[:, :, ::2, 4:-4],
    "one head": lambda: _of(B, N, 1, D).transpose(1, 2),
}

# For these, `torch.empty_like` has other strides than the outputs of the kernels.
UNLIKE = ("sequence first", "heads first", "columns outside", "channels last", "heads expanded", "tokens expanded")
