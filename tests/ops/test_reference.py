"""The float64 reference against torch's float64 attention and closed forms, and its gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from entropy_attn.ops.reference import attention_reference
from tests.support.oracle import make_qkv

BOOL_MASK = torch.rand(33, 47, generator=torch.Generator().manual_seed(1)) > 0.3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.7},
        {"scale": 0.0},
        {"scale": -1.3},
        {"is_causal": True},
        {"attn_mask": BOOL_MASK},
        {"attn_mask": torch.randn(4, 1, 47, dtype=torch.float64)},
    ],
    ids=lambda options: "".join(options),
)
def test_out_equals_torch_in_float64(options):
    q, k, v = make_qkv(head_dim_v=24, dtype=torch.float64)
    out, *_ = attention_reference(q, k, v, **options)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, **options))


def test_statistics_equal_their_definitions():
    q, k, v = make_qkv(dtype=torch.float64)
    _, lse, entropy, head_mean = attention_reference(q, k, v, scale=0.3, map_keys=(3, 20))
    s = 0.3 * q @ k.mT
    p = s.softmax(-1)
    torch.testing.assert_close(lse, s.logsumexp(-1))
    torch.testing.assert_close(entropy, torch.special.entr(p).sum(-1))
    torch.testing.assert_close(head_mean, p.mean(1)[..., 3:20])


def test_grouped_heads_and_per_head_scale():
    q, k, v = make_qkv(heads=6, heads_kv=2, dtype=torch.float64)
    scale = torch.tensor([0.1, -0.2, 0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    out, lse, entropy, head_mean = attention_reference(q, k, v, scale=scale, enable_gqa=True, map_keys=(0, 47))
    mean_of_one = 0.0
    for h in range(6):
        head = q[:, h, None], k[:, h // 3, None], v[:, h // 3, None]
        *one, p = attention_reference(*head, scale=scale[h].item(), map_keys=(0, 47))
        for all_heads, single in zip((out, lse, entropy), one, strict=True):
            torch.testing.assert_close(all_heads[:, h, None], single)
        mean_of_one += p / 6
    torch.testing.assert_close(head_mean, mean_of_one)


@pytest.mark.parametrize("shape", [(2, 4), (2, 1), (1, 4)], ids=str)
def test_a_scale_for_each_sample(shape):
    q, k, v = make_qkv(dtype=torch.float64)
    scale = torch.linspace(-0.4, 1.0, shape[0] * shape[1], dtype=torch.float64).view(shape)
    results = attention_reference(q, k, v, scale=scale, map_keys=(3, 20))
    for b in range(2):
        one = attention_reference(q[b, None], k[b, None], v[b, None], scale=scale.expand(2, 4)[b], map_keys=(3, 20))
        for both, single in zip(results, one, strict=True):
            torch.testing.assert_close(both[b, None], single)


def test_closed_forms():
    q, k, v = make_qkv(seqlen_k=50, dtype=torch.float64)
    _, lse, entropy, head_mean = attention_reference(q, k, v, scale=0.0, map_keys=(5, 50))  # every row is uniform
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(50)))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(50)))
    torch.testing.assert_close(head_mean, torch.full_like(head_mean, 1 / 50))
    out, _, entropy, _ = attention_reference(q, k[:, :, :1], v[:, :, :1])  # one key: one-hot
    assert torch.equal(entropy, torch.zeros_like(entropy)) and not entropy.signbit().any()
    torch.testing.assert_close(out, v[:, :, :1].expand_as(out))


@pytest.mark.parametrize("additive", [False, True])
def test_rows_without_keys_are_zero_and_have_no_gradient(additive):
    q, k, v = make_qkv(2, 2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[2] = False
    mask = torch.zeros(5, 6).masked_fill(~mask, -math.inf) if additive else mask
    out, lse, entropy, head_mean = attention_reference(q, k, v, attn_mask=mask, map_keys=(1, 6))
    assert out[:, :, 2].eq(0).all() and entropy[:, :, 2].eq(0).all() and lse[:, :, 2].eq(-math.inf).all()
    assert head_mean[:, 2].eq(0).all()
    grads = torch.autograd.grad(out.sum() + lse.sum() + entropy.sum() + head_mean.square().sum(), (q, k, v))
    assert all(g.isfinite().all() for g in grads)
    assert grads[0][:, :, 2].eq(0).all()


def test_without_keys_at_all():
    q, k, v = make_qkv(seqlen_k=0)
    out, lse, entropy, _ = attention_reference(q, k, v)
    assert out.eq(0).all() and lse.eq(-math.inf).all() and entropy.eq(0).all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_numerically(is_causal):
    q, k, v = make_qkv(1, 2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.4, -0.8], dtype=torch.float64, requires_grad=True)
    mask = None if is_causal else torch.randn(2, 1, 5, dtype=torch.float64, requires_grad=True)

    def call(q, k, v, scale, mask=None):
        return attention_reference(q, k, v, scale=scale, attn_mask=mask, is_causal=is_causal, map_keys=(1, 4))

    assert torch.autograd.gradcheck(call, (q, k, v, scale) + (() if is_causal else (mask,)))
