"""Shared by the kernel tests: the device, the dtypes, and the comparison with float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import interpreting
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import ForwardConfig
from tests.support.oracle import assert_matches_oracle

DEVICE = "cuda" if not interpreting() and torch.cuda.is_available() else "cpu"  # also for an emulated card
# Triton's interpreter multiplies bfloat16 wrongly.
DTYPES = (torch.float32, torch.float16) if interpreting() else (torch.float32, torch.float16, torch.bfloat16)


def check(query: Tensor, key: Tensor, value: Tensor, config: ForwardConfig | None = None, **options: Any) -> None:
    """Output, lse and entropy of the kernel against float64."""
    gqa = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    statistics = {"return_lse": True, "return_entropy": True}
    actual = launch.attention_forward(AttentionCall(query, key, value, **statistics, **options), config=config)
    assert_matches_oracle(actual, query, key, value, **options, **gqa)


def random_mask(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A mask of the kind "bool", "added" or "excluding"; of the first and last kind, the fourth row has no keys."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(shape, generator=generator) > 0.4
    if shape[-2] > 1:
        keep[..., 3, :] = False
    mask = {
        "bool": keep,
        "added": torch.randn(shape, generator=generator).to(dtype),
        "excluding": torch.zeros(shape, dtype=dtype).masked_fill(~keep, -math.inf),
    }[kind]
    return mask.to(DEVICE)
