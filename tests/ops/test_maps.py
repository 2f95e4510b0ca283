"""The head-averaged map through the public call: values, ranges, gradients with any other output, memory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import entropy_attn as ea
from tests.support.oracle import assert_matches_oracle, make_qkv

IMPLS = ["auto", "sdpa", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seqlen_k", [1, 4, 77, 128, 129, 300])
def test_the_map_of_all_keys_and_a_part_of_it(seqlen_k, dtype, impl):
    q, k, v = make_qkv(seqlen_k=seqlen_k, dtype=dtype)
    for map_keys in {(0, seqlen_k), (seqlen_k // 2, seqlen_k // 2 + 1)}:
        r = ea.attention(q, k, v, map_keys=map_keys, impl=impl)
        assert r.lse is None and r.entropy is None
        assert r.map.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_matches_oracle(r, q, k, v, map_keys=map_keys)
    full = ea.attention(q, k, v, map_keys=(0, seqlen_k), impl=impl).map
    torch.testing.assert_close(full.sum(-1), torch.ones_like(full[..., 0]))


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_text_keys_of_a_joint_attention(impl):
    q, k, v = make_qkv(1, 3, 50, 4096 + 77, 8)
    r = ea.attention(q, k, v, map_keys=(4096, 4096 + 77), return_entropy=True, impl=impl)
    assert r.map.shape == (1, 50, 77)
    assert_matches_oracle(r, q, k, v, map_keys=(4096, 4096 + 77))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", ["causal", "bool", "excluding", "grouped"])
def test_masks_scales_and_grouped_heads(kind, impl):
    q, k, v = make_qkv(heads_kv=2 if kind == "grouped" else 4)
    keep = torch.rand(33, 47, generator=torch.Generator().manual_seed(0)) > 0.4
    keep[5] = False
    options = {
        "causal": {"is_causal": True, "scale": -0.2},
        "bool": {"attn_mask": keep, "scale": torch.tensor(0.4)},
        "excluding": {"attn_mask": torch.zeros(2, 1, 33, 47).masked_fill(~keep, -math.inf), "scale": 0.0},
        "grouped": {"enable_gqa": True, "scale": torch.tensor([0.1, 0.0, -0.3, 1.0])},
    }[kind]
    for map_keys in ((0, 47), (30, 45)):
        r = ea.attention(q, k, v, **options, map_keys=map_keys, impl=impl)
        assert_matches_oracle(r, q, k, v, **options, map_keys=map_keys)
        assert kind not in ("bool", "excluding") or r.map[:, 5].eq(0).all()


@pytest.mark.parametrize(
    "given, resolved",
    [(slice(None), (0, 47)), (slice(3, None), (3, 47)), (slice(None, -40, 1), (0, 7)), ((-5, -1), (42, 46))],
    ids=str,
)
def test_ranges_resolve_like_python_slices(given, resolved):
    q, k, v = make_qkv()
    expected = ea.attention(q, k, v, map_keys=resolved, impl="reference").map
    assert expected.shape[-1] == resolved[1] - resolved[0]
    assert torch.equal(ea.attention(q, k, v, map_keys=given, impl="reference").map, expected)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_gradients_of_any_combination_of_outputs(impl):
    q, k, v = make_qkv(2, 2, 4, 5, 3, heads_kv=1, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.4, -0.8], dtype=torch.float64, requires_grad=True)
    for chosen in itertools.chain(*(itertools.combinations(range(4), n) for n in (1, 2, 3, 4))):

        def call(*inputs):
            q, k, v, scale = inputs
            r = ea.attention(
                q, k, v, scale=scale, enable_gqa=True, return_lse=True, return_entropy=True, map_keys=(1, 4), impl=impl
            )
            return tuple(r[i] for i in chosen)  # noqa: B023

        inputs = (q, k, v, scale)
        assert torch.autograd.gradcheck(call, inputs, raise_exception=True), chosen


def test_the_reference_has_second_derivatives():
    q, k, v = make_qkv(1, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda *qkv: ea.attention(*qkv, map_keys=(0, 2), impl="reference").map, (q, k, v)
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_on_the_meta_device_and_under_autocast(impl):
    q, k, v = make_qkv()
    assert ea.attention(*(t.to("meta") for t in (q, k, v)), map_keys=(3, 9), impl=impl).map.shape == (2, 33, 6)
    with torch.autocast("cpu", torch.bfloat16):
        r = ea.attention(q, k, v, map_keys=(3, 9), impl=impl)
    assert r.out.dtype == torch.bfloat16 and r.map.dtype == torch.float32
    assert_matches_oracle(r, *(t.bfloat16() for t in (q, k, v)), map_keys=(3, 9))


def test_under_torch_compile():
    q, k, v = make_qkv(requires_grad=True)
    results = []
    for call in (ea.attention, torch.compile(ea.attention, backend="aot_eager")):
        r = call(q, k, v, map_keys=(3, 20))
        results.append((r.map, *torch.autograd.grad(r.map.square().sum() + r.out.sum(), (q, k, v))))
    torch.testing.assert_close(*results)
