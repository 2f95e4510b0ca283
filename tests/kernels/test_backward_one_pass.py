"""Gradients where one block has all keys: dQ, dK and dV by one kernel, and the queries in parts, against float64."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from entropy_attn.kernels.backward import configs
from entropy_attn.kernels.backward import launch as launch_backward
from entropy_attn.kernels.backward.configs import BackwardConfig, TileConfig, query_parts
from tests.kernels.calls import DEVICE, DTYPES, random_mask
from tests.kernels.test_backward import backward
from tests.kernels.test_backward import check as check_gradients
from tests.support.oracle import make_qkv as make_qkv_on
from tests.support.oracle_gradients import GRADS, assert_gradients_match, gradients, random_gradients, reference_outputs

make_qkv = functools.partial(make_qkv_on, device=DEVICE)
OTHERS = (TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1))
ONE_PASS = BackwardConfig(*OTHERS, one_pass=TileConfig(32, 64, 4, 1))
check = functools.partial(check_gradients, config=ONE_PASS)


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the launched kernels, and as many multiprocessors as make several parts of the queries."""
    query_parts.cache_clear()
    for target in configs.MULTIPROCESSORS:
        monkeypatch.setitem(configs.MULTIPROCESSORS, target, 12)
    names: list[str] = []
    run = launch_backward.Launch.run
    monkeypatch.setattr(
        launch_backward.Launch, "run", lambda self, *given: (names.append(self.kernel.__name__), run(self, *given))[1]
    )
    yield names
    query_parts.cache_clear()


def kernels(*parts: str) -> list[str]:
    return [f"attention_backward_{part}" for part in ("rows", *parts)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 80, 128])
def test_head_dims(head_dim, dtype, launched):
    check(*make_qkv(1, 1, 70, 13, head_dim, dtype=dtype))
    assert launched == kernels("key")


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("seqlen_q, seqlen_k", [(1, 1), (1, 64), (90, 1), (32, 32), (31, 33), (257, 5), (64, 64)])
def test_ragged_lengths(seqlen_q, seqlen_k, is_causal, launched):
    check(*make_qkv(1, 2, seqlen_q, seqlen_k, 16, dtype=torch.float16), is_causal=is_causal)
    assert launched == kernels("key")


@pytest.mark.parametrize("names", [(n,) for n in GRADS] + [GRADS[:3]], ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_each_result(names, dtype):
    check(*make_qkv(1, 2, 140, 13, 16, dtype=dtype), names=names)


@pytest.mark.parametrize("needed", [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}], ids=str)
def test_only_needed_gradients(needed, launched):
    needs = tuple(i in needed for i in range(4))
    q, k, v = make_qkv(1, 2, 140, 13, 16)
    grads = random_gradients(q, k, v, (0, 9))
    results = backward(q, k, v, grads, needs=needs, config=ONE_PASS)
    assert tuple(t is not None for t in results) == needs
    assert_gradients_match(results, q, k, v, grads)
    assert launched == kernels("query" if needed == {0} else "key")


def test_the_scale_s_gradient_and_longer_keys_take_two_passes(launched):
    scale = torch.tensor([0.3, -0.2], device=DEVICE)
    check(*make_qkv(1, 2, 40, 13, 16), scale=scale)
    check(*make_qkv(1, 2, 40, 65, 16))
    assert launched == 2 * kernels("query", "key")


@pytest.mark.parametrize("is_causal", [False, True])
def test_parts_of_the_queries_with_several_blocks_of_keys(is_causal, launched):
    q, k, v = make_qkv(1, 2, 290, 35, 16, heads_kv=1, dtype=torch.float16)
    config = BackwardConfig(*OTHERS)
    assert query_parts("sm_90", config.key.block_m, 2, 290, 35)[0] == 2
    check_gradients(q, k, v, config, is_causal=is_causal)
    assert launched == kernels("query", "key")


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("bool", (2, 2, 140, 13)), ("bool", (140, 13)), ("added", (2, 1, 1, 13)), ("excluding", (2, 2, 140, 13)),
     ("excluding", (2, 1, 1, 13))],
)  # fmt: skip
def test_masks(shape, kind, dtype=torch.float16):
    dq = check(*make_qkv(2, 2, 140, 13, 16, dtype=dtype), attn_mask=random_mask(kind, shape, dtype))[0]
    if shape[-2] > 1 and kind != "added":
        assert dq[:, :, 3].eq(0).all()


@pytest.mark.parametrize(
    ("scale", "heads_kv", "dtype"),
    [
        (0.0, 1, torch.float32),
        (-0.3, 2, torch.float16),
        (torch.tensor(0.2), 1, torch.float16),
        (torch.tensor([0.1, -0.5, 0.0, 1.0]), 2, torch.float32),
        (torch.tensor([0.1, -0.5, 0.0, 1.0]), 1, torch.float16),
    ],
    ids=str,
)
def test_scales_and_grouped_heads(scale, heads_kv, dtype, launched):
    """Without the gradient of the scale."""
    q, k, v = make_qkv(1, 4, 70, 13, 16, heads_kv=heads_kv, dtype=dtype)
    scale = scale.to(DEVICE) if isinstance(scale, Tensor) else scale
    grads = random_gradients(q, k, v, (3, 9))
    actual = backward(q, k, v, grads, needs=(True, True, True, False), config=ONE_PASS, scale=scale)
    assert launched == kernels("key")
    assert_gradients_match(actual, q, k, v, grads, scale=scale)


def test_keys_beyond_the_last_add_nothing_where_all_scores_are_low():
    """P of a key beyond the last, whose score is 0, would overflow."""
    q, k, v = make_qkv(1, 1, 40, 13, 16)
    q, k = q.abs() * 40, -k.abs() * 40
    check(q, k, v, scale=1.0)


def test_any_strides():
    packed = torch.randn(2, 140, 2, 2, 24, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    q, do = (t.transpose(1, 2) for t in packed.unbind(2))
    _, k, v = make_qkv(2, 2, 140, 13, 24)
    grads = {"grad_out": do}
    for query, key in ((q, k), (q.flip(1).mT.contiguous().mT, k.expand(2, 2, -1, -1).mT.contiguous().mT)):
        assert_gradients_match(backward(query, key, v, grads, config=ONE_PASS), query, key, v, grads)


def test_a_large_gradient_of_the_scores_fits_into_float16():
    q, k, v = make_qkv(1, 2, 140, 13, 32, dtype=torch.float16)
    q, k = q * 0.1, k * 0.01
    grads = random_gradients(q, k, v, (0, 9), GRADS[1:])
    grads = {n: t * 2.0**20 if isinstance(t, Tensor) else t for n, t in grads.items()}
    actual = backward(q, k, v, grads, config=ONE_PASS)
    truth = gradients(reference_outputs, torch.float64, q, k, v, grads, None)
    for result, expected in zip(actual[:2], truth, strict=False):
        assert (result - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_results_are_the_same_bits_each_time():
    q, k, v = make_qkv(1, 1, 140, 13, 16, dtype=torch.float16)
    grads = random_gradients(q, k, v, (0, 9))
    first, second = (backward(q, k, v, grads, config=ONE_PASS) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))


def test_parts_of_the_queries():
    for programs, seqlen_q, seqlen_k in ((16, 4096, 77), (16, 1024, 77), (1, 70, 1), (200, 4096, 77), (4, 2**20, 128)):
        parts, queries = query_parts("sm_90", 64, programs, seqlen_q, seqlen_k)
        assert (parts - 1) * queries < seqlen_q <= parts * queries  # none is empty
        assert queries % 64 == 0
        assert parts == 1 or parts * seqlen_k * 4 <= seqlen_q
        assert parts == 1 or (parts - 1) * programs < 12
