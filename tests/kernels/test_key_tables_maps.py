"""The map kernels with a factor and a bias for each key, against their formula in float64."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from entropy_attn.kernels.common.call import AllResults, AttentionCall
from entropy_attn.kernels.maps.configs import MapConfig
from entropy_attn.kernels.maps.launch import attention_forward_with_map
from tests.kernels.calls import DEVICE, DTYPES, random_mask
from tests.kernels.test_key_tables_backward import EVERY, SOME, table
from tests.support.oracle import make_qkv as make_qkv_on
from tests.support.oracle_rows import assert_all_match

make_qkv = functools.partial(make_qkv_on, device=DEVICE)
CONFIGS = {
    "one tile": MapConfig(16, (64, 0), 4, 1),
    "two tiles": MapConfig(16, (32, 16), 4, 1),
    "sweep": MapConfig(16, (32, 0), 4, 1, one_pass=False),
}


def check(
    query: Tensor, key: Tensor, value: Tensor, config: MapConfig, *, map_keys: tuple[int, int] = (5, 37),
    key_scale: Tensor | None = None, key_bias: Tensor | None = None, key_rows: tuple[int, int] | None = None,
    attn_mask: Tensor | None = None, **options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, lse, entropy and map against float64."""
    call = AttentionCall(
        query, key, value, attn_mask, **options, return_lse=True, return_entropy=True, map_keys=map_keys,
        key_scale=key_scale, key_bias=key_bias, key_rows=key_rows,
    )  # fmt: skip
    actual = attention_forward_with_map(call, config=config)
    assert_all_match(AllResults(*actual), call)
    return actual


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("key_rows", [EVERY, SOME], ids=["every", "some"])
def test_factors_and_biases(key_rows, config):
    q, k, v = make_qkv(1, 2, 21, 41, 16, heads_kv=1, dtype=DTYPES[0 if key_rows else 1])
    check(q, k, v, CONFIGS[config], key_scale=table(2, 41), key_bias=2 * table(41, seed=1), key_rows=key_rows)
    check(q, k, v, CONFIGS[config], key_scale=table(41), key_rows=key_rows)


@pytest.mark.parametrize("config", CONFIGS)
def test_tables_of_samples_and_heads(config):
    q, k, v = make_qkv(2, 2, 21, 41, 16)
    bias = table(2, 1, 41, seed=1).transpose(0, 3).contiguous().transpose(0, 3)
    check(q, k, v, CONFIGS[config], key_scale=table(2, 2, 82)[..., ::2], key_bias=bias, key_rows=SOME)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", ["bool", "added", "causal"])
def test_beside_a_mask(kind, config):
    q, k, v = make_qkv(1, 1, 21, 41, 16)
    tables = {"key_scale": table(41), "key_bias": table(41, seed=1)}
    if kind == "causal":
        check(q, k, v, CONFIGS[config], **tables, is_causal=True)
    else:
        check(q, k, v, CONFIGS[config], **tables, key_rows=SOME, attn_mask=random_mask(kind, (21, 41), q.dtype))


@pytest.mark.parametrize("config", CONFIGS)
def test_excluded_keys_rows_without_keys_and_low_biases(config):
    q, k, v = make_qkv(1, 2, 21, 41, 16, dtype=DTYPES[1])
    bias = table(41)
    bias[..., 3:9] = -math.inf
    head_mean = check(q, k, v, CONFIGS[config], key_bias=bias)[3]
    assert not head_mean[..., :4].any() and head_mean[..., 4:].all()
    for low, expected in ((-math.inf, 0.0), (-1e9, 1 / 41)):
        everywhere = torch.full((1, 1, 1, 41), low, device=DEVICE)
        call = AttentionCall(q, k, v, map_keys=(5, 37), return_entropy=True, key_bias=everywhere, key_rows=SOME)
        *_, entropy, head_mean = attention_forward_with_map(call, config=CONFIGS[config])
        inside = head_mean[:, slice(*SOME)]
        torch.testing.assert_close(inside, torch.full_like(inside, expected), rtol=1e-5, atol=0)
        of_rows = entropy[:, :, slice(*SOME)]
        uniform = torch.full_like(of_rows, math.log(41) if expected else 0.0)
        torch.testing.assert_close(of_rows, uniform, rtol=1e-6, atol=0)
