"""The kernel agrees with float64 for random shapes, masks, scales and tiles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.forward.configs import ForwardConfig
from entropy_attn.kernels.forward.launch import attention_forward
from tests.kernels.calls import DEVICE, DTYPES, check
from tests.support.oracle import make_qkv

STATISTICS = {"return_lse": True, "return_entropy": True}

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
head_dims = st.integers(2, 12).map(lambda n: 8 * n)
lengths = st.integers(1, 90)
scales = st.none() | st.floats(-2.0, 2.0)
# Each seed gives another call; drawing every element would only slow down the search.
seeds = st.integers(0, 2**32 - 1)


@st.composite
def masks(draw: st.DrawFn, batch: int, heads: int, seqlen_q: int, seqlen_k: int) -> torch.Tensor | None:
    """None, or a boolean or additive mask of a shape that broadcasts, with excluded rows and columns."""
    kind = draw(st.sampled_from(["none", "bool", "added"]))
    if kind == "none":
        return None
    full = (batch, heads, seqlen_q, seqlen_k)
    shape = [size if draw(st.booleans()) else 1 for size in full]
    generator = torch.Generator().manual_seed(draw(seeds))
    keep = torch.rand(shape, generator=generator) >= draw(st.sampled_from([0.0, 0.3, 0.9]))
    keep[:, :, draw(st.integers(0, shape[2] - 1))] = draw(st.booleans())
    if kind == "bool":
        return keep
    return torch.randn(shape, generator=generator).masked_fill(~keep, -math.inf)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_call_agrees_with_the_oracle(data):
    draw = data.draw
    batch, heads_kv, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    seqlen_q, seqlen_k = draw(lengths), draw(lengths)
    q, k, v = make_qkv(
        batch, heads_kv * group, seqlen_q, seqlen_k, draw(head_dims), heads_kv=heads_kv, head_dim_v=draw(head_dims),
        dtype=draw(st.sampled_from(DTYPES)), gain=draw(st.sampled_from([0.1, 1.0, 20.0])), seed=draw(seeds),
        device=DEVICE,
    )  # fmt: skip
    mask = draw(masks(batch, heads_kv * group, seqlen_q, seqlen_k))
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
    config = ForwardConfig(
        *draw(st.sampled_from([(16, 16), (32, 64), (64, 32)])), 4, 1,
        descriptors=draw(st.booleans()), split_d=draw(st.booleans()), max_chunk=draw(st.sampled_from([32, 256])),
        by_lane=draw(st.booleans()),
    )  # fmt: skip
    check(
        q, k, v, config,
        attn_mask=mask if mask is None else mask.to(DEVICE),
        is_causal=mask is None and draw(st.booleans()),
        scale=draw(scales),
    )  # fmt: skip


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=seeds, shift=st.floats(-50.0, 50.0), seqlen_k=lengths)
def test_adding_a_constant_to_the_logits_of_a_row_changes_only_lse(seed, shift, seqlen_k):
    q, k, v = make_qkv(1, 2, 20, seqlen_k, 16, seed=seed, device=DEVICE)
    mask = torch.full((1, 1, 1, seqlen_k), shift, device=DEVICE)
    plain = attention_forward(AttentionCall(q, k, v, **STATISTICS))
    moved = attention_forward(AttentionCall(q, k, v, mask, **STATISTICS))
    torch.testing.assert_close(moved[0], plain[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[1], plain[1] + shift, rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[2], plain[2], rtol=0, atol=1e-4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=seeds, seqlen_k=st.integers(2, 90))
def test_the_order_of_the_keys_does_not_matter(seed, seqlen_k):
    q, k, v = make_qkv(1, 1, 20, seqlen_k, 16, seed=seed, device=DEVICE)
    order = torch.randperm(seqlen_k, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    one = attention_forward(AttentionCall(q, k, v, **STATISTICS))
    other = attention_forward(AttentionCall(q, k[:, :, order], v[:, :, order], **STATISTICS))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
