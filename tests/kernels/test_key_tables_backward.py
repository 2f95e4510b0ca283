"""The backward kernels with a factor and a bias for each key, against float64 autograd."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from entropy_attn.kernels.backward import launch as launch_backward
from entropy_attn.kernels.backward.configs import BackwardConfig, TileConfig
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.forward import launch
from tests.kernels.calls import DEVICE, DTYPES
from tests.support.oracle import make_qkv as make_qkv_on
from tests.support.oracle_gradients import GRADS, assert_gradients_match, random_gradients

make_qkv = functools.partial(make_qkv_on, device=DEVICE)
SMALL = BackwardConfig(TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1))
ONE_PASS = BackwardConfig(TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1), one_pass=TileConfig(16, 64, 4, 1))
EVERY, SOME = None, (13, 21)  # queries; the latter begin and end inside of tiles


def table(*shape: int, seed: int = 0) -> Tensor:
    """(B or 1, H or 1, 1, Nk) normal numbers."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return drawn[(None,) * (3 - drawn.dim())].unsqueeze(2).to(DEVICE)


def dense(values: Tensor | None, rows: tuple[int, int] | None, seqlen_q: int, neutral: float) -> Tensor | None:
    """A table as (B or 1, H or 1, Nq, Nk), as the formula has it."""
    if values is None:
        return None
    of_query = torch.full((*values.shape[:2], seqlen_q, values.shape[3]), neutral, device=values.device)
    of_query[:, :, slice(*(rows or (None, None)))] = values.float()
    return of_query


def added(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One mask of a mask and a bias."""
    if mask is None or bias is None:
        return bias if mask is None else mask
    return torch.where(mask, bias, -math.inf) if mask.dtype == torch.bool else mask.float() + bias


def check(
    query: Tensor, key: Tensor, value: Tensor, config: BackwardConfig | None = None, *,
    key_scale: Tensor | None = None, key_bias: Tensor | None = None, key_rows: tuple[int, int] | None = None,
    attn_mask: Tensor | None = None, names: tuple[str, ...] = GRADS, **options: Any,
) -> tuple:  # fmt: skip
    """All gradients, computed from random gradients of the named outputs, against float64."""
    map_keys = key.shape[2] // 3, (2 * key.shape[2] + 3) // 3
    grads = random_gradients(query, key, value, map_keys, names)
    given = {name: t for name, t in grads.items() if name != "map_keys"}
    needs = (True, True, True, isinstance(options.get("scale"), Tensor))
    call = AttentionCall(
        query, key, value, attn_mask, **options, return_lse=True, return_entropy=True, map_keys=grads.get("map_keys"),
        key_scale=key_scale, key_bias=key_bias, key_rows=key_rows,
    )  # fmt: skip
    actual = launch_backward.attention_backward(
        call, *launch.attention_forward(call), **given, needs=needs, config=config
    )
    seqlen_q = query.shape[2]
    factor, bias = dense(key_scale, key_rows, seqlen_q, 1.0), dense(key_bias, key_rows, seqlen_q, 0.0)
    mask = added(attn_mask, bias)
    factor = torch.ones(1, 1, 1, 1, device=query.device) if factor is None else factor
    assert_gradients_match(actual, query, key, value, grads, attn_mask=mask, factor=factor, **options)
    return actual


@pytest.mark.parametrize("key_rows", [EVERY, SOME], ids=["every", "some"])
@pytest.mark.parametrize("what", ["scale", "bias", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_and_biases(dtype, what, key_rows):
    tables = {"key_scale": table(50), "key_bias": 2 * table(50, seed=1)}
    tables = {name: t for name, t in tables.items() if what in (name[4:], "both")}
    check(*make_qkv(1, 2, 35, 50, 16, dtype=dtype), SMALL, **tables, key_rows=key_rows)
