"""The forward kernel against the float64 oracle, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import ForwardConfig
from tests.kernels.calls import DEVICE, DTYPES, check, random_mask
from tests.support.oracle import make_qkv as make_qkv_on

make_qkv = functools.partial(make_qkv_on, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 72, 80, 96, 128, 160, 256])
def test_head_dims(head_dim, dtype):
    check(*make_qkv(1, 2, 70, 77, head_dim, dtype=dtype))


@pytest.mark.parametrize("seqlen_q, seqlen_k", [(1, 1), (1, 300), (300, 1), (63, 65), (64, 64), (129, 200)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_ragged_lengths(seqlen_q, seqlen_k, is_causal):
    check(*make_qkv(1, 2, seqlen_q, seqlen_k, 32), is_causal=is_causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 2, 70, 133), (2, 1, 70, 133), (1, 2, 1, 133), (1, 1, 70, 1), (70, 133)])
@pytest.mark.parametrize("kind", ["bool", "added", "excluding"])
def test_masks_broadcast_by_stride(shape, kind, dtype):
    check(*make_qkv(2, 2, 70, 133, 32, dtype=dtype), attn_mask=random_mask(kind, shape, dtype))


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.5, torch.tensor(0.2), torch.tensor([0.1, -0.5, 0.0, 1.0])], ids=str)
def test_scales(scale):
    scale = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale
    check(*make_qkv(1, 4, 35, 77, 32, heads_kv=2), scale=scale)


@pytest.mark.parametrize("shape", [(2, 2), (2, 1), (1, 2)], ids=str)
def test_scales_of_samples(shape):
    scale = torch.linspace(-0.5, 0.6, shape[0] * shape[1]).view(shape).to(DEVICE)
    q, k, v = make_qkv(2, 2, 20, 50, 16, heads_kv=1)
    check(q, k, v, scale=scale)
    check(q, k, v, scale=scale.mT.contiguous().mT, attn_mask=random_mask("added", (20, 50), torch.float32))


@pytest.mark.parametrize("gain", [1.0, 30.0, 1e4])
def test_logits_up_to_one_hot(gain):
    check(*make_qkv(1, 2, 70, 77, 64, gain=gain))


def test_the_entropy_of_a_uniform_row_is_ln_n():
    q, k, v = make_qkv(1, 1, 5, 77, 16)
    _, lse, entropy = launch.attention_forward(AttentionCall(q * 0, k, v, return_lse=True, return_entropy=True))
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(77)))
    torch.testing.assert_close(lse, entropy)


@pytest.mark.parametrize("by_lane", [False, True])
@pytest.mark.parametrize("block_n", [16, 64])
@pytest.mark.parametrize("kind", [None, "excluding"])
def test_sums_of_whole_rows_and_by_lane(kind, block_n, by_lane):
    q, k, v = make_qkv(1, 2, 35, 100, 32, gain=10.0)
    mask = None if kind is None else random_mask(kind, (35, 100), torch.float32)
    check(q, k, v, config=ForwardConfig(32, block_n, 4, 1, by_lane=by_lane), attn_mask=mask)


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("split_d", [False, True])
@pytest.mark.parametrize("head_dim, head_dim_v", [(40, 96), (80, 80), (112, 16)])
def test_both_kernels_and_both_ways_to_split_a_head_dim(descriptors, split_d, head_dim, head_dim_v):
    config = ForwardConfig(32, 64, 4, 1, descriptors=descriptors, split_d=split_d)
    check(*make_qkv(2, 2, 35, 100, head_dim, head_dim_v=head_dim_v), config=config)


def test_any_strides():
    packed = torch.randn(2, 70, 3, 4, 24, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    q, k, v = (t.transpose(1, 2) for t in packed.unbind(2))
    check(q, k, v)
    check(*(t.mT.contiguous().mT for t in (q, k, v)))
    check(q[:, :, ::2], k.flip(2)[:, :, ::3], v.flip(2)[:, :, ::3])
    out, _, _ = launch.attention_forward(AttentionCall(q, k, v))
    assert out.transpose(1, 2).is_contiguous()  # like the query: merging heads afterwards copies nothing
