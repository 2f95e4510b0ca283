"""Offsets beyond 2**31 elements, in memory that is reserved, but only touched where it is used."""

from __future__ import annotations

import mmap

import pytest
import torch

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.maps.launch import attention_forward_with_map
from tests.kernels.calls import DEVICE, check
from tests.support.oracle import assert_matches_oracle, make_qkv

MAP_NORESERVE = 0x4000  # Linux; Python's mmap names it from 3.13 on
pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU, tests/gpu tests this")


def spread(t: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy of `t` with these strides, in elements."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, strides, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, (last + 1) * t.element_size(), flags=flags)
    return torch.frombuffer(memory, dtype=t.dtype).as_strided(t.shape, strides).copy_(t)


@pytest.mark.parametrize(
    "strides",
    [
        (2**31 + 8, 16 * 40, 16, 1),
        (16 * 40, 2**31 + 8, 16, 1),
        (2**31, 2**30, 2**26, 1),  # one tile spans more than 2**31 elements
        (3, 1, 7, 2**28 + 1),
    ],
    ids=["batch", "head", "row", "column"],
)
def test_large_strides(strides):
    calls = make_qkv(2, 2, 40, 40, 16, dtype=torch.float16)
    check(*(spread(t, strides) for t in calls))


def test_a_large_mask_stride():
    q, k, v = make_qkv(1, 1, 40, 40, 16)
    mask = spread(torch.rand(40, 40) > 0.4, (2**27 + 3, 2))
    check(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("seqlen_k", [40, 140])  # one pass, and a sweep
@pytest.mark.parametrize("strides", [(2**31 + 8, 2**30, 16, 1), (2**31, 2**30, 2**26, 1)], ids=["outer", "tile"])
def test_maps_of_large_strides(strides, seqlen_k):
    q, k, v = (spread(t, strides) for t in make_qkv(2, 2, 40, seqlen_k, 16, dtype=torch.float16))
    result = attention_forward_with_map(AttentionCall(q, k, v, map_keys=(3, seqlen_k)))
    assert_matches_oracle(result, q, k, v, map_keys=(3, seqlen_k))
