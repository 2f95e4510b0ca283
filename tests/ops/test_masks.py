"""Torch's operations and the reference with masks of every size, rank and dtype, and with NaN."""

from __future__ import annotations

import itertools

import pytest
import torch

import entropy_attn as ea
from tests.support import mask_checks as checks
from tests.support.oracle import assert_matches_oracle, make_qkv

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_large_masks(impl, dtype):
    checks.check_large_masks(impl, "cpu", dtype, keys=12)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_beside_large_masks(compiled):
    checks.check_gradients_beside_large_masks("sdpa", "cpu", compiled)


def test_nan():
    checks.check_nan("sdpa", "cpu", 7)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_ranks_and_dtypes_of_masks(impl):
    checks.check_mask_ranks_and_dtypes(impl, "cpu", FLOATS)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_grouped_heads_that_differ(impl):
    checks.check_grouped_heads_that_differ(impl, "cpu")


@pytest.mark.parametrize("dtype, of_mask", list(itertools.product(FLOATS, FLOATS)), ids=str)
def test_no_mask_is_rounded_to_a_narrower_dtype(dtype, of_mask):
    """Values that only the dtype of the mask can represent, also in an autocast region."""
    largest = min(torch.finfo(of_mask).max, 1e300)
    mask = torch.tensor([-1.0, -1.0, -0.5, 0.0, -0.75, 0.0], dtype=torch.float64) * largest * 0.9
    mask = torch.stack([mask, mask - mask[0], torch.full_like(mask, -largest), mask / largest]).to(of_mask)
    q, k, v = make_qkv(1, 2, 4, 6, 16, dtype=dtype)
    plain = ea.attention(q, k, v, attn_mask=mask).out
    r = ea.attention(q, k, v, attn_mask=mask, return_entropy=True)
    assert_matches_oracle((plain, None, r.entropy), q, k, v, attn_mask=mask)
    assert_matches_oracle((r.out,), q, k, v, attn_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ea.attention(q, k, v, attn_mask=mask)
        statistics = ea.attention(q, k, v, attn_mask=mask, return_entropy=True)
    cast = [t if dtype == torch.float64 else t.bfloat16() for t in (q, k, v)]
    assert_matches_oracle((inside.out, None, statistics.entropy), *cast, attn_mask=mask)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_heads_that_do_not_divide_are_refused_for_key_and_for_value(impl):
    q, k, v = make_qkv(1, 4, 5, 7, 16)
    with pytest.raises(ValueError, match="value: expected a number of heads that divides"):
        ea.attention(q, k, v[:, :3], enable_gqa=True, impl=impl)
    with pytest.raises(ValueError, match="value: expected the query's 4 heads, got 2"):
        ea.attention(q, k, v[:, :2], impl=impl)


@pytest.mark.parametrize("shape", [(0, 2, 5, 16), (1, 2, 0, 16), (1, 0, 5, 16)], ids=str)
def test_empty_calls(shape):
    q = torch.zeros(shape)
    for options in ({}, checks.STATISTICS):
        for mask in (None, torch.zeros(shape[2], shape[2])):
            for impl in ("sdpa", "reference"):
                assert ea.attention(q, q, q, attn_mask=mask, **options, impl=impl).out.shape == shape
