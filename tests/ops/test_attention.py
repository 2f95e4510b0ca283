"""The public calls: what they return, and that the drop-in equals torch's attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import entropy_attn as ea
from entropy_attn.ops.reference import attention_reference
from tests.support.oracle import assert_matches_oracle, make_qkv

MASK = torch.rand(33, 47, generator=torch.Generator().manual_seed(0)) > 0.4


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("return_entropy", [False, True])
def test_returns_what_the_call_requests(impl, dtype, return_lse, return_entropy):
    q, k, v = make_qkv(heads=4, heads_kv=2, head_dim_v=16, dtype=dtype)
    options = {"attn_mask": MASK, "scale": torch.tensor([0.1, 0.2, -0.3, 0.0]), "enable_gqa": True}
    r = ea.attention(q, k, v, **options, return_lse=return_lse, return_entropy=return_entropy, impl=impl)
    assert isinstance(r, ea.AttentionOutput)
    assert r.out.shape == (2, 4, 33, 16) and r.out.dtype == dtype
    for wanted, statistic in ((return_lse, r.lse), (return_entropy, r.entropy)):
        assert (statistic is not None) == wanted
        if wanted:
            assert statistic.shape == (2, 4, 33)
            assert statistic.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_matches_oracle(r, q, k, v, **options)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [0, 0.0, -1, np.float32(0.3), torch.tensor(0.3), torch.full((4,), -0.5),
                                   torch.linspace(-0.4, 0.5, 8).view(2, 4)], ids=str)  # fmt: skip
def test_every_kind_of_scale(impl, statistics, is_causal, scale):
    q, k, v = make_qkv()
    r = ea.attention(
        q, k, v, scale=scale, is_causal=is_causal, impl=impl, return_lse=statistics, return_entropy=statistics
    )
    scale = scale if isinstance(scale, torch.Tensor) else float(scale)
    assert_matches_oracle(r, q, k, v, scale=scale, is_causal=is_causal)


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("shape", [(), (4,), (2, 4), (2, 1), (1, 4)], ids=str)
def test_gradient_reaches_a_tensor_scale(impl, statistics, shape):
    q, k, v = make_qkv(dtype=torch.float64)
    grads = []
    for call in (ea.attention, attention_reference):
        scale = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
        options = {} if call is attention_reference else {"impl": impl, "return_entropy": statistics}
        result = call(q, k, v, scale=scale, **options)
        loss = result[0].square().sum() + (result[2].sum() if statistics else 0.0)
        grads += torch.autograd.grad(loss, scale)
    torch.testing.assert_close(*grads)


def test_auto_uses_torch_on_the_cpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, v = make_qkv()
    assert torch.equal(ea.attention(q, k, v, scale=0.3).out, F.scaled_dot_product_attention(q, k, v, scale=0.3))


@pytest.mark.parametrize(
    "shapes",
    [
        ((5, 8), (7, 8), (7, 6)),
        ((3, 5, 8), (3, 7, 8), (3, 7, 8)),
        ((2, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)),
        ((2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)),
        ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)),
        ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.2}, {"attn_mask": torch.randn(5, 7)}], ids=lambda o: "".join(o)
)
def test_the_drop_in_equals_torch(shapes, options):
    q, k, v = (torch.randn(s) for s in shapes)
    ours = ea.scaled_dot_product_attention(q, k, v, **options)
    assert torch.equal(ours, F.scaled_dot_product_attention(q, k, v, **options))


def test_the_drop_in_accepts_torchs_arguments_by_position():
    q, k, v = make_qkv(heads=4, heads_kv=2)
    ours = ea.scaled_dot_product_attention(q, k, v, MASK, 0.0, False, scale=0.2, enable_gqa=True)
    theirs = F.scaled_dot_product_attention(q, k, v, MASK, 0.0, False, scale=0.2, enable_gqa=True)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("scale", [None, 0.2, -0.2, torch.tensor(0.2), torch.full((4,), 0.2)], ids=str)
def test_dropout_goes_to_torch_with_our_scale(scale):
    q, k, v = make_qkv()
    torch.manual_seed(5)
    ours = ea.scaled_dot_product_attention(q, k, v, dropout_p=0.5, scale=scale)
    torch.manual_seed(5)
    number = scale if scale is None else float(torch.as_tensor(scale).mean())
    theirs = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, scale=number)
    torch.testing.assert_close(ours, theirs)


def test_a_per_head_scale_without_a_batch_dimension():
    q, k, v = make_qkv(batch=1)
    scale = torch.tensor([0.1, 0.2, -0.3, 0.0])
    batched = ea.attention(q, k, v, scale=scale).out
    torch.testing.assert_close(ea.scaled_dot_product_attention(q[0], k[0], v[0], scale=scale), batched[0])


def test_the_drop_in_with_a_scale_for_each_sample():
    q, k, v = make_qkv(heads=3)
    scale = torch.tensor([[0.1, 0.2, -0.3], [0.0, 1.0, 0.5]])
    both = ea.scaled_dot_product_attention(q, k, v, scale=scale)
    for b in range(2):
        one = ea.scaled_dot_product_attention(*(t[b, None] for t in (q, k, v)), scale=scale[b])
        torch.testing.assert_close(both[b, None], one)
    one_head = ea.scaled_dot_product_attention(q, k[:, :1], v[:, :1], scale=scale)  # torch broadcasts it
    expanded = ea.scaled_dot_product_attention(q, k[:, :1].expand_as(k), v[:, :1].expand_as(v), scale=scale)
    torch.testing.assert_close(one_head, expanded)


@pytest.mark.parametrize("statistics", [False, True])
def test_autocast_casts_like_torchs_attention(statistics):
    q, k, v = make_qkv()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = F.scaled_dot_product_attention(q, k.bfloat16(), v)
        assert torch.equal(ea.scaled_dot_product_attention(q, k.bfloat16(), v), theirs)
        r = ea.attention(q, k.bfloat16(), v, return_lse=statistics, return_entropy=statistics)
    assert r.out.dtype == theirs.dtype == torch.bfloat16
    assert_matches_oracle(r, q.bfloat16(), k.bfloat16(), v.bfloat16())


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_closed_forms(impl):
    q, k, v = make_qkv(seqlen_k=50)
    uniform = ea.attention(q, k, v, scale=0.0, return_entropy=True, impl=impl).entropy
    torch.testing.assert_close(uniform, torch.full_like(uniform, math.log(50)))
    one_key = ea.attention(q, k[:, :, :1], v[:, :, :1], return_entropy=True, impl=impl).entropy
    assert torch.equal(one_key, torch.zeros_like(one_key))
    eye = torch.eye(50, 40).expand(1, 1, 50, 40)
    one_hot = ea.attention(1e4 * eye[:, :, :40], eye, v[:1, :1], scale=1.0, return_entropy=True, impl=impl)
    assert torch.equal(one_hot.out, v[:1, :1, :40]) and one_hot.entropy.eq(0).all()


@pytest.mark.parametrize("statistics", [False, True])
def test_shapes_on_the_meta_device(statistics):
    q, k, v = (t.to("meta") for t in make_qkv(head_dim_v=24))
    r = ea.attention(q, k, v, return_lse=statistics, return_entropy=statistics)
    assert r.out.shape == (2, 4, 33, 24) and r.out.device.type == "meta"
    assert not statistics or r.entropy.shape == r.lse.shape == (2, 4, 33)


def test_under_torch_compile():
    q, k, v = make_qkv(requires_grad=True)
    results = []
    for call in (ea.attention, torch.compile(ea.attention, backend="aot_eager")):
        r = call(q, k, v, scale=0.3, return_entropy=True)
        results.append((r.out, r.entropy, *torch.autograd.grad(r.out.sum() + r.entropy.sum(), (q, k, v))))
    torch.testing.assert_close(*results)
