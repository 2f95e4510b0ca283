"""The map kernels against the float64 oracle, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import entropy_attn as ea
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import call_target
from entropy_attn.kernels.maps import configs as configs_maps
from entropy_attn.kernels.maps.configs import MapConfig
from entropy_attn.kernels.maps.launch import attention_forward_with_map
from tests.kernels.calls import DEVICE, DTYPES
from tests.support.oracle import assert_matches_oracle
from tests.support.oracle import make_qkv as make_qkv_on

make_qkv = functools.partial(make_qkv_on, device=DEVICE)
SWEEP = MapConfig(16, (32, 0), 4, 1, one_pass=False)


def check(
    query: Tensor, key: Tensor, value: Tensor, map_keys: tuple[int, int] | None = None, *,
    config: MapConfig | None = None, **options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """All four results against float64; without `map_keys` the map covers all keys."""
    map_keys = map_keys or (0, key.shape[2])
    gqa = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    statistics = {"return_lse": True, "return_entropy": True}
    call = AttentionCall(query, key, value, map_keys=map_keys, **statistics, **options)
    actual = attention_forward_with_map(call, config=config)
    assert actual[3].dtype == torch.float32
    assert_matches_oracle(actual, query, key, value, map_keys=map_keys, **options, **gqa)
    return actual


@pytest.mark.parametrize(
    ("seqlen_k", "dtype"),
    [*((n, torch.float16) for n in (1, 4, 77, 128, 129, 300)), (77, torch.float32), (300, torch.float32)],
)
def test_numbers_of_keys(seqlen_k, dtype):
    q, k, v = make_qkv(1, 3, 35, seqlen_k, 40, dtype=dtype)
    check(q, k, v)
    check(q, k, v, (seqlen_k // 2, seqlen_k // 2 + 1))
    check(q, k, v, (0, (seqlen_k + 1) // 2), is_causal=True)


@pytest.mark.parametrize("config", [None, SWEEP], ids=["one-pass", "sweep"])
@pytest.mark.parametrize("map_keys", [(0, 77), (0, 1), (76, 77), (13, 50), (60, 70)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_ranges(map_keys, is_causal, config):
    """Their ends are in the first tile of keys, in the second, or one in each."""
    check(*make_qkv(2, 2, 35, 77, 16), map_keys, is_causal=is_causal, config=config)


@pytest.mark.parametrize("config", [None, SWEEP], ids=["one-pass", "sweep"])
@pytest.mark.parametrize("head_dim, head_dim_v", [(16, 16), (64, 24), (80, 112), (160, 40), (256, 256)])
def test_head_dims(head_dim, head_dim_v, config):
    for dtype in DTYPES:
        check(*make_qkv(1, 2, 20, 77, head_dim, head_dim_v=head_dim_v, dtype=dtype), config=config)


MASKS = [(2, 2, 35, 77), (2, 1, 35, 77), (1, 2, 1, 77), (1, 1, 35, 1), (35, 77)]


@pytest.mark.parametrize("config", [None, SWEEP], ids=["one-pass", "sweep"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *(("bool", shape) for shape in MASKS),
        *((kind, shape) for kind in ("added", "excluding") for shape in MASKS[1:3]),
    ],
)
def test_masks_broadcast_by_stride(shape, kind, config):
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(shape, generator=generator) > 0.4
    if shape[-2] > 1:
        keep[..., 3, :] = False  # a row without keys
    mask = {
        "bool": keep,
        "added": torch.randn(shape, generator=generator),
        "excluding": torch.zeros(shape).masked_fill(~keep, -math.inf),
    }[kind]
    *_, head_mean = check(*make_qkv(2, 2, 35, 77, 32), (5, 77), attn_mask=mask.to(DEVICE), config=config)
    assert kind == "added" or shape[-2] == 1 or head_mean[:, 3].eq(0).all()


@pytest.mark.parametrize("seqlen_k", [77, 150])
@pytest.mark.parametrize("scale", [0.0, -0.3, torch.tensor(0.2), torch.tensor([0.1, -0.5, 0.0, 1.0])], ids=str)
def test_scales_with_grouped_heads(scale, seqlen_k):
    scale = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale
    check(*make_qkv(1, 4, 35, seqlen_k, 32, heads_kv=2), scale=scale)


@pytest.mark.parametrize("seqlen_k", [77, 150])
@pytest.mark.parametrize("shape", [(2, 2), (2, 1), (1, 2)], ids=str)
def test_scales_of_samples(shape, seqlen_k):
    scale = torch.linspace(-0.5, 0.6, shape[0] * shape[1]).view(shape).to(DEVICE)
    check(*make_qkv(2, 2, 20, seqlen_k, 16, heads_kv=1), scale=scale)


@pytest.mark.parametrize("seqlen_k", [77, 150])
@pytest.mark.parametrize("gain", [1.0, 30.0, 1e4])
def test_logits_up_to_one_hot(gain, seqlen_k):
    check(*make_qkv(1, 2, 35, seqlen_k, 64, gain=gain))


def test_a_uniform_row():
    q, k, v = make_qkv(1, 3, 5, 77, 16)
    *_, head_mean = attention_forward_with_map(AttentionCall(q * 0, k, v, map_keys=(7, 77)))
    torch.testing.assert_close(head_mean, torch.full_like(head_mean, 1 / 77))


@pytest.mark.parametrize("seqlen_k", [77, 150])
def test_any_strides(seqlen_k):
    q, k, v = make_qkv(2, 4, 40, seqlen_k, 24)
    check(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)))
    check(*(t.mT.contiguous().mT for t in (q, k, v)))
    check(q[:, :, ::2], k.flip(2)[:, :, ::3], v.flip(2)[:, :, ::3])
    check(*(torch.stack([t, t], -1)[..., 0] for t in (q, k, v)))


@pytest.mark.parametrize("config", [None, SWEEP], ids=["one-pass", "sweep"])
@pytest.mark.parametrize("multiprocessors", [4, 12, 1000])
def test_few_programs_share_the_heads(multiprocessors, config, monkeypatch):
    """Each part of the heads has a separate map; the last part has fewer heads."""
    q, k, v = make_qkv(1, 5, 40, 77, 16)
    monkeypatch.setitem(configs_maps.MULTIPROCESSORS, call_target(q), multiprocessors)
    first = check(q, k, v, config=config)
    again = check(q, k, v, config=config)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("seqlen_k", [77, 150])
def test_statistics_are_returned_if_requested(seqlen_k):
    q, k, v = make_qkv(1, 2, 20, seqlen_k, 16)
    for lse, entropy in ((False, False), (True, False), (False, True)):
        call = AttentionCall(q, k, v, map_keys=(0, 9), return_lse=lse, return_entropy=entropy)
        r = attention_forward_with_map(call)
        assert (r[1] is not None, r[2] is not None) == (lse, entropy)
        assert_matches_oracle(r, q, k, v, map_keys=(0, 9))


@pytest.mark.parametrize("seqlen_k", [77, 150])
def test_the_public_call(seqlen_k):
    q, k, v = make_qkv(2, 4, 35, seqlen_k, 40, heads_kv=2)
    r = ea.attention(q, k, v, enable_gqa=True, return_entropy=True, map_keys=slice(-70, None), impl="triton")
    assert r.lse is None and r.map.shape == (2, 35, 70)
    assert_matches_oracle(r, q, k, v, enable_gqa=True, map_keys=(seqlen_k - 70, seqlen_k))
    for t in (q[:0], q[:, :, :0]):
        empty = ea.attention(t, k[: len(t)], v[: len(t)], enable_gqa=True, map_keys=(3, 5), impl="triton")
        assert empty.map.shape == (len(t), t.shape[2], 2)


@pytest.mark.parametrize("tiles", [(64, 0), (128, 16)])
def test_tiles_that_do_not_fit_the_keys_are_refused(tiles):
    with pytest.raises(ValueError, match="config: expected tiles whose last one the 77 keys reach"):
        check(*make_qkv(1, 1, 5, 77, 16), config=MapConfig(16, tiles, 4, 1))
