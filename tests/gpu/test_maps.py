"""The compiled map kernels at the sizes of real models."""

from __future__ import annotations

import pytest
import torch

import entropy_attn as ea
from tests.support.oracle import assert_matches_oracle

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def randn(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seqlen_k", [1, 77, 120, 128, 300])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 96, 128, 160, 192, 256])
def test_cross_attention(head_dim, seqlen_k, dtype):
    q, k, v = (randn(2, 5, n, head_dim, dtype=dtype) for n in (1001, seqlen_k, seqlen_k))
    options = {"map_keys": (0, seqlen_k), "return_lse": True, "return_entropy": True}
    assert_matches_oracle(ea.attention(q, k, v, **options, impl="triton"), q, k, v, map_keys=(0, seqlen_k))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_text_keys_of_a_joint_attention(head_dim):
    q, k, v = (randn(2, 3, 4173, head_dim) for _ in range(3))
    r = ea.attention(q, k, v, map_keys=(4096, 4173), return_entropy=True, impl="triton")
    rows = slice(2000, 2200)
    some = (r.out[:, :, rows], None, r.entropy[:, :, rows], r.map[:, rows])
    assert_matches_oracle(some, q[:, :, rows], k, v, map_keys=(4096, 4173))


@pytest.mark.parametrize("seqlen_k", [77, 1000])
def test_the_same_call_gives_the_same_bits(seqlen_k):
    q, k, v = (randn(1, 8, n, 64) for n in (200, seqlen_k, seqlen_k))
    first = ea.attention(q, k, v, map_keys=(0, 77), impl="triton")
    for _ in range(5):
        again = ea.attention(q, k, v, map_keys=(0, 77), impl="triton")
        assert torch.equal(first.out, again.out) and torch.equal(first.map, again.map)


def test_auto_uses_the_kernel_for_a_map_and_torch_for_its_gradient():
    q, k, v = (randn(1, 2, n, 64) for n in (70, 77, 77))
    expected = ea.attention(q, k, v, map_keys=(0, 77), impl="triton").map
    assert torch.equal(ea.attention(q, k, v, map_keys=(0, 77)).map, expected)
    q.requires_grad_()
    ea.attention(q, k, v, map_keys=(0, 77)).map.square().sum().backward()
    assert q.grad.isfinite().all() and q.grad.any()
