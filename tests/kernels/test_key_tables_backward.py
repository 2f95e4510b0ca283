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
from tests.kernels.calls import DEVICE, DTYPES, random_mask
from tests.support.oracle import make_qkv as make_qkv_on
from tests.support.oracle_gradients import (
    GRADS,
    assert_gradients_match,
    dense_table,
    gradients,
    random_gradients,
    reference_outputs,
    with_tables,
)

make_qkv = functools.partial(make_qkv_on, device=DEVICE)
SMALL = BackwardConfig(TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1))
ONE_PASS = BackwardConfig(TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1), one_pass=TileConfig(16, 64, 4, 1))
EVERY, SOME = None, (13, 21)  # queries; the latter begin and end inside of tiles


def table(*shape: int, seed: int = 0) -> Tensor:
    """(B or 1, H or 1, 1, Nk) normal numbers."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return drawn[(None,) * (3 - drawn.dim())].unsqueeze(2).to(DEVICE)


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
    tables = {"key_scale": key_scale, "key_bias": key_bias, "key_rows": key_rows}
    given = with_tables(attn_mask, query.shape[2], **tables)
    assert_gradients_match(actual, query, key, value, grads, **given, **options)
    return actual


SCALE, BIAS, BOTH = ("key_scale",), ("key_bias",), ("key_scale", "key_bias")


@pytest.mark.parametrize(
    "dtype, names, key_rows",
    [(0, SCALE, EVERY), (1, SCALE, SOME), (0, BIAS, SOME), (1, BOTH, SOME)],
)
def test_factors_and_biases(dtype, names, key_rows):
    tables = {"key_scale": table(30), "key_bias": 2 * table(30, seed=1)}
    q, k, v = make_qkv(1, 1, 35, 30, 16, dtype=DTYPES[dtype])
    check(q, k, v, SMALL, **{name: tables[name] for name in names}, key_rows=key_rows)


def test_tables_of_samples_and_heads():
    """Query heads that share a key head have tables of their own; and any strides."""
    q, k, v = make_qkv(2, 2, 21, 17, 16, heads_kv=1)
    bias = table(2, 1, 17, seed=1).transpose(0, 3).contiguous().transpose(0, 3)
    check(q, k, v, SMALL, key_scale=table(2, 2, 34)[..., ::2], key_bias=bias, key_rows=SOME)


def test_few_keys_in_one_pass():
    """The kernel of dK and dV computes dQ too."""
    q, k, v = make_qkv(1, 2, 35, 30, 16, heads_kv=1, dtype=DTYPES[1])
    check(q, k, v, ONE_PASS, key_scale=table(2, 30), key_bias=table(30, seed=1), key_rows=SOME)
    check(q, k, v, ONE_PASS, key_scale=table(30), names=("grad_out",))


@pytest.mark.parametrize("kind", ["bool", "added", "causal"])
def test_beside_a_mask(kind):
    q, k, v = make_qkv(1, 1, 21, 30, 16)
    tables = {"key_scale": table(30), "key_bias": table(30, seed=1)}
    if kind == "causal":
        check(q, k, v, SMALL, **tables, is_causal=True)
    else:
        check(q, k, v, SMALL, **tables, key_rows=SOME, attn_mask=random_mask(kind, (21, 30), q.dtype))


def test_excluded_keys_and_rows_without_keys():
    bias = table(30)
    bias[..., 3:9] = -math.inf
    q, k, v = make_qkv(1, 1, 21, 30, 16, dtype=DTYPES[1])
    dk, dv = check(q, k, v, SMALL, key_bias=bias)[1:3]
    assert not dk[:, :, 3:9].any() and not dv[:, :, 3:9].any()
    dq = check(q, k, v, SMALL, key_bias=torch.full_like(bias, -math.inf), key_rows=SOME)[0]
    assert not dq[:, :, slice(*SOME)].any() and dq[:, :, : SOME[0]].any()


def test_rows_whose_bias_is_low_everywhere():
    """Float32 holds no logit beside such a bias: the keys of these queries get equal attention."""
    q, k, v = make_qkv(1, 1, 21, 30, 16)
    check(q, k, v, SMALL, key_bias=torch.full((1, 1, 1, 30), -1e9, device=DEVICE), key_rows=SOME)


def test_the_gradient_of_the_scale():
    scale = torch.tensor([[0.3, -0.2]], device=DEVICE)
    q, k, v = make_qkv(1, 2, 21, 17, 16, heads_kv=1, dtype=DTYPES[1])
    dscale = check(q, k, v, SMALL, key_scale=table(2, 17), key_bias=table(17, seed=1), key_rows=SOME, scale=scale)[3]
    assert dscale.shape == scale.shape


@pytest.mark.parametrize("size, loss_scale", [(3e3, 1.0), (1e-3, 1e-6)])
def test_the_gradient_of_the_products_fits_into_float16(size, loss_scale):
    """dS times a factor is what is rounded to float16: it neither overflows nor vanishes."""
    q, k, v = make_qkv(1, 1, 21, 30, 16, dtype=torch.float16)
    q, k = q * (0.1 / size if size > 1 else 1.0), k * 0.01 if size > 1 else k
    factor = size * table(30)
    grads = random_gradients(q, k, v, (0, 15), GRADS[1:3])
    grads = {name: t * loss_scale for name, t in grads.items()}
    call = AttentionCall(q, k, v, return_lse=True, return_entropy=True, key_scale=factor)
    dq, dk, _, _ = launch_backward.attention_backward(call, *launch.attention_forward(call), **grads, config=SMALL)
    truth = gradients(
        reference_outputs, torch.float64, q, k, v, grads, None, factor=dense_table(factor, EVERY, 21, 1.0)
    )
    for name, actual, expected in (("dq", dq, truth[0]), ("dk", dk, truth[1])):
        largest = expected.abs().max().item()
        assert actual.isfinite().all() and largest < 65504, name
        assert (actual - expected).abs().max().item() <= 2e-3 * largest + 2**-25, name
