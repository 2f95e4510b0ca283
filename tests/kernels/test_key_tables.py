"""The forward kernel with a factor and a bias by key, and its further statistics of rows, against float64."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from entropy_attn.kernels.common.call import AllResults, AttentionCall
from entropy_attn.kernels.common.support import INTERPRETER, call_target, interpreting
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import ForwardConfig
from entropy_attn.kernels.maps import launch as launch_maps
from entropy_attn.kernels.maps.configs import MapConfig
from tests.kernels.calls import DEVICE, DTYPES, random_mask
from tests.support.oracle import make_qkv as make_qkv_on
from tests.support.oracle_rows import assert_all_match

make_qkv = functools.partial(make_qkv_on, device=DEVICE)
SMALL = ForwardConfig(32, 32, 4, 1, by_lane=True)
DESCRIBED = ForwardConfig(32, 32, 4, 1, descriptors=True)
EVERY, SOME = None, (13, 21)  # queries; the latter begin and end inside of tiles


def table(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B or 1, H or 1, 1, Nk) normal numbers."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return drawn[(None,) * (3 - drawn.dim())].unsqueeze(2).to(DEVICE)


def check(
    query: Tensor, key: Tensor, value: Tensor, config: ForwardConfig | None = SMALL, *, rows: bool = True,
    map_config: MapConfig | None = None, **options: Any,
) -> AllResults:  # fmt: skip
    """All results against float64; `rows`: with variance, maximum and the mass of the middle keys."""
    seqlen_k = key.shape[2]
    asked: dict[str, Any] = {"return_lse": True, "return_entropy": True}
    if rows:
        middle = (seqlen_k // 3, (2 * seqlen_k + 3) // 3)
        asked |= {"return_variance": True, "return_max": True, "mass_keys": middle}
    call = AttentionCall(query, key, value, **asked, **options)
    if call.map_keys is not None:
        actual = launch_maps.attention_forward_with_map_all(call, config=map_config)
    else:
        actual = launch.attention_forward_all(call, config=config)
    assert [t is not None for t in actual[4:]] == [rows] * 3
    assert_all_match(actual, call)
    return actual


@pytest.mark.parametrize(
    "given, dtype, rows",
    [("scale", DTYPES[0], EVERY), ("bias", DTYPES[0], SOME), *(("both", dtype, SOME) for dtype in DTYPES)],
)
def test_tables_of_heads_and_samples(given, dtype, rows):
    scale = 1.0 + 0.5 * table(2, 1, 47) if given != "bias" else None
    bias = table(2, 47, seed=1) if given != "scale" else None
    tensors = make_qkv(2, 2, 25, 47, 24, heads_kv=1, head_dim_v=16, dtype=dtype)
    check(*tensors, key_scale=scale, key_bias=bias, key_rows=rows)


@pytest.mark.parametrize("config", [SMALL, DESCRIBED, None], ids=["pointers", "descriptors", "the table's"])
@pytest.mark.parametrize("seqlen_q, seqlen_k", [(1, 1), (33, 1), (16, 64), (37, 79)])
def test_ragged_lengths(config, seqlen_q, seqlen_k):
    check(*make_qkv(1, 2, seqlen_q, seqlen_k, 16), config, key_scale=table(2, seqlen_k), key_bias=table(seqlen_k))


@pytest.mark.parametrize("rows", [(0, 16), (15, 17), (16, 35), (34, 35)])
def test_rows_at_the_borders_of_tiles(rows):
    check(*make_qkv(1, 2, 35, 47, 16), key_scale=table(47), key_bias=2.0 * table(2, 47), key_rows=rows)


@pytest.mark.parametrize("rows", [EVERY, SOME])
@pytest.mark.parametrize("kind", ["bool", "added", "excluding"])
def test_beside_a_mask(kind, rows):
    mask = random_mask(kind, (1, 1, 35, 47), torch.float32)
    bias = table(1, 2, 47)
    bias[..., 40:] = -math.inf
    check(*make_qkv(1, 2, 35, 47, 16), attn_mask=mask, key_scale=table(47), key_bias=bias, key_rows=rows)
    check(*make_qkv(1, 1, 16, 47, 16), attn_mask=random_mask(kind, (1, 47), torch.float32), key_bias=bias[:, :1])


@pytest.mark.parametrize("given", [{}, {"key_scale": table(47), "key_bias": table(2, 47)}])
@pytest.mark.parametrize("scale", [-0.3, 0.0, torch.tensor([0.4, -0.2])], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_scales_and_causality(given, scale, is_causal):
    scale = scale.to(DEVICE) if isinstance(scale, Tensor) else scale
    check(*make_qkv(1, 2, 35, 47, 16), scale=scale, is_causal=is_causal, **given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("stride", [1, 3])
def test_tables_of_any_dtype_and_stride(dtype, stride):
    scale, bias = (table(2, 47 * stride, seed=seed, dtype=dtype)[..., ::stride] for seed in (0, 1))
    check(*make_qkv(1, 2, 35, 47, 16), key_scale=scale, key_bias=bias)


@pytest.mark.parametrize("large", [-1e30, -3.4e38, 3.4e38, -math.inf])
@pytest.mark.parametrize("mask", [None, "added"])
def test_large_biases(large, mask):
    """Of some keys, of all keys of a head, and beside a mask that is as large."""
    bias = table(1, 3, 47)
    bias[0, 0, :, 5:40] = large
    bias[0, 1] = large
    bias[0, 2, :, :20] = -math.inf
    added = None
    if mask is not None:
        added = table(30, 47)[0, :, 0].contiguous()  # (30, 47)
        added[3] = -math.inf
        added[4, :30] = -3.4e38 if large < 0 else 1e30
    actual = check(*make_qkv(1, 3, 30, 47, 16), attn_mask=added, key_bias=bias)
    if large == -math.inf:  # a head without keys
        empty = {"out": 0.0, "lse": -math.inf, "entropy": 0.0, "variance": 0.0, "max": -math.inf, "mass": 0.0}
        for name, wanted in empty.items():
            assert getattr(actual, name)[0, 1].eq(wanted).all(), name


def test_keys_that_are_excluded_may_be_undefined():
    q, k, v = make_qkv(1, 2, 35, 47, 16)
    bias = table(47)
    bias[..., 7:21] = -math.inf
    sound = launch.attention_forward_all(AttentionCall(q, k, v, key_bias=bias, return_variance=True), config=SMALL)
    k[:, :, 7:21] = math.nan
    found = launch.attention_forward_all(AttentionCall(q, k, v, key_bias=bias, return_variance=True), config=SMALL)
    assert torch.equal(sound.out, found.out) and torch.equal(sound.variance, found.variance)


@pytest.mark.parametrize("gain", [1e-3, 30.0, 1e4])
@pytest.mark.parametrize("descending", [False, True])
def test_the_variance_at_any_magnitude_of_logits(gain, descending):
    """Also where every block raises the maximum, and where the first block has it."""
    q, k, v = make_qkv(1, 1, 35, 79, 16)
    order = (q.mean(2, keepdim=True) @ k.mT).argsort(-1, descending=descending)
    k = k.gather(2, order.mT.expand_as(k))
    check(q * gain, k, v, config=ForwardConfig(64, 16, 4, 1))


def test_the_variance_of_equal_logits_is_zero_and_of_two_values_known():
    q, k, v = make_qkv(1, 1, 5, 64, 16)
    asked = {"return_variance": True, "return_max": True, "mass_keys": (0, 32)}
    call = AttentionCall(q * 0, k, v, **asked, key_bias=torch.full((1, 1, 1, 64), 3.0, device=DEVICE))
    found = launch.attention_forward_all(call)
    assert found.variance.eq(0).all() and found.max.eq(3.0).all()
    torch.testing.assert_close(found.mass, torch.full_like(found.mass, 0.5))
    half = torch.tensor([0.0] * 32 + [2.0] * 32, device=DEVICE)[None, None, None]
    found = launch.attention_forward_all(AttentionCall(q * 0, k, v, **asked, key_bias=half))
    p = 1 / (1 + math.exp(2.0))
    torch.testing.assert_close(found.variance, torch.full_like(found.variance, 4 * p * (1 - p)))
    torch.testing.assert_close(found.mass, torch.full_like(found.mass, p))


def test_a_row_of_nan_has_undefined_statistics():
    q, k, v = make_qkv(1, 2, 35, 47, 16)
    q[0, 1, 3] = math.nan
    for tables in ({}, {"key_scale": table(47), "key_bias": table(47)}):
        call = AttentionCall(q, k, v, return_variance=True, return_max=True, mass_keys=(3, 20), **tables)
        for t in launch.attention_forward_all(call, config=SMALL)[4:]:
            assert t[0, 1, 3].isnan() and t.isnan().sum() == 1


@pytest.mark.parametrize("asked", [{"return_variance": True}, {"return_max": True}, {"mass_keys": (5, 9)}])
def test_one_statistic_alone(asked):
    call = AttentionCall(*make_qkv(1, 2, 35, 47, 16), **asked)
    actual = launch.attention_forward_all(call, config=SMALL)
    assert sum(t is not None for t in actual) == 2
    assert_all_match(actual, call)


@pytest.mark.parametrize("keys", [(0, 79), (0, 1), (78, 79), (31, 33), (32, 64)])
def test_the_mass_of_any_range_of_keys(keys):
    call = AttentionCall(*make_qkv(1, 1, 16, 79, 16), mass_keys=keys)
    assert_all_match(launch.attention_forward_all(call, config=SMALL), call)


@pytest.mark.parametrize("tables", [False, True])
def test_with_a_map(tables):
    """With statistics of rows the map is swept, also of few keys."""
    given = {"key_scale": table(2, 70), "key_bias": 3.0 * table(70)} if tables else {}
    check(*make_qkv(1, 2, 30, 70, 16), map_keys=(3, 65), **given)
    one_pass = MapConfig(32, (64, 0), 4, 1, one_pass=True)
    with pytest.raises(ValueError, match="expected a sweep for a call with the variance, maximum or mass of rows"):
        check(*make_qkv(2, 2, 35, 47, 16), map_keys=(3, 20), map_config=one_pass)


def test_without_queries_or_keys():
    for shape in ((1, 2, 0, 5, 16), (1, 2, 5, 0, 16)):
        q, k, v = make_qkv(*shape)
        tables = {"key_scale": table(2, shape[3]), "key_bias": table(2, shape[3])}
        call = AttentionCall(q, k, v, return_variance=True, return_max=True, **tables)
        found = launch.attention_forward_all(call)
        assert found.variance.eq(0).all() and found.max.eq(-math.inf).all() and found.variance.shape == q.shape[:3]


@pytest.fixture
def hopper():
    """Skips the test on other GPUs."""
    if call_target(torch.empty(0, device=DEVICE)) not in (INTERPRETER, "sm_90"):
        pytest.skip("the schedules are for Hopper")


def scheduled(schedule: str) -> ForwardConfig:
    block_m, warps = (32, 4) if interpreting() else (128, 4 if schedule == "specialized" else 8)
    return ForwardConfig(block_m, 32 if interpreting() else 64, warps, 2, descriptors=True, schedule=schedule)


def test_other_schedules(hopper):
    length = 64 if interpreting() else 128
    tensors = make_qkv(1, 1, 30, length, 16, dtype=torch.float16)
    tables = {"key_scale": table(1, length), "key_bias": table(length), "key_rows": SOME}
    check(*tensors, scheduled("rotated"), **tables)
    check(*tensors, scheduled("rotated"))
    check(*tensors, scheduled("specialized"))
    with pytest.raises(ValueError, match="schedule='specialized': expected no key_scale and key_bias"):
        check(*tensors, scheduled("specialized"), **tables)
    if not interpreting():
        in_turns = ForwardConfig(128, 128, 4, 2, descriptors=True, schedule="pingpong")
        with pytest.raises(ValueError, match="schedule='pingpong': it knows no key_scale and key_bias"):
            check(*tensors, in_turns, **tables)
        with pytest.raises(ValueError, match="schedule='pingpong': it knows no variance, maximum and mass"):
            check(*tensors, in_turns)
