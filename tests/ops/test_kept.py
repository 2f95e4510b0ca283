"""Probabilities that a CPU keeps for the backward pass: where it does, values and gradients, memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import entropy_attn as ea
from entropy_attn.ops import kept, sdpa
from entropy_attn.ops.reference import attention_reference
from tests.support.oracle import assert_matches_oracle, make_qkv, poisoned_memory

MAP = {"map_keys": (20, 45)}


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls that keep their probabilities."""
    made, real = [], kept.attention_kept
    monkeypatch.setattr(sdpa, "attention_kept", lambda *given: made.append(given) or real(*given))
    return made


def attend(q, k, v, **options):
    with poisoned_memory():
        return ea.attention(q, k, v, impl="sdpa", **options)


def mask_of(kind):
    """None, or a mask of (33, 47) in which query 7 has no key."""
    keep = torch.rand(33, 47, generator=torch.Generator().manual_seed(3)) > 0.4
    keep[7] = False
    additive = torch.randn(33, 47, generator=torch.Generator().manual_seed(4)).masked_fill(~keep, -math.inf)
    return {"none": None, "bool": keep, "additive": additive, "row": additive[1:2], "column": additive[:, 2:3]}[kind]


def test_where_probabilities_are_kept(calls, monkeypatch):
    leaf, plain = make_qkv(requires_grad=True), make_qkv()
    for inputs, options in ((plain, MAP), (leaf, MAP | {"return_lse": True}), (leaf, MAP | {"is_causal": True})):
        attend(*inputs, **options)
    with torch.no_grad():
        attend(*leaf, **MAP)
    monkeypatch.setattr(kept, "KEPT_BYTES", 2 * 4 * 33 * 47 * 4 - 1)
    attend(*leaf, **MAP)
    assert not calls
    monkeypatch.setattr(kept, "KEPT_BYTES", 2 * 4 * 33 * 47 * 4)
    for inputs, options in ((leaf, MAP), (leaf, {"return_entropy": True}), ((*plain[:2], leaf[2]), MAP)):
        calls.clear()
        attend(*inputs, **options)
        assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mask", ["none", "bool", "additive", "row", "column"])
@pytest.mark.parametrize("scale", [None, 0.0, -0.4])
def test_matches_oracle(dtype, mask, scale, calls):
    q, k, v = make_qkv(head_dim_v=24, dtype=dtype, requires_grad=True)
    options = {"attn_mask": mask_of(mask), "scale": scale, **MAP}
    result = attend(q, k, v, **options, return_entropy=True)
    assert calls and result.map.is_contiguous()
    assert_matches_oracle([None if t is None else t.detach() for t in result], q, k, v, **options)
    assert (result.entropy >= 0).all()


def test_values_do_not_depend_on_what_is_kept():
    inputs = make_qkv(requires_grad=True)
    one = attend(*inputs, **MAP, return_entropy=True)
    with torch.no_grad():
        other = attend(*inputs, **MAP, return_entropy=True)
    for name in ("out", "entropy", "map"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=2e-6)


def test_a_query_with_nan_stays_nan_and_one_without_keys_has_zeros(calls):
    q, k, v = make_qkv()
    q[:, :, 3] = math.nan
    q.requires_grad_()
    result = attend(q, k, v, attn_mask=mask_of("bool"), return_entropy=True, **MAP)
    assert calls
    for t in (result.out[:, :, 3], result.entropy[:, :, 3], result.map[:, 3]):
        assert t.isnan().all()
    for t in (result.out[:, :, 7], result.entropy[:, :, 7], result.map[:, 7]):
        assert t.eq(0).all()
    assert not any(t[:, :, 8:].isnan().any() for t in (result.out, result.entropy))


@pytest.mark.parametrize("case", ["plain", "bool", "additive", "column"])
def test_gradients_numerically(case, calls):
    q, k, v = make_qkv(2, 4, 7, 9, 3, heads_kv=2, head_dim_v=2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.4, -0.8, 0.0, 1.5], dtype=torch.float64, requires_grad=True)
    keep = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) > 0.4
    keep[3] = False
    shape = {"additive": (4, 1, 9), "column": (2, 1, 7, 1)}.get(case)
    mask = torch.randn(shape, dtype=torch.float64, requires_grad=True) if shape else keep if case == "bool" else None

    def call(q, k, v, scale, mask):
        result = ea.attention(
            q, k, v, scale=scale, attn_mask=mask, enable_gqa=True, return_entropy=True, map_keys=(2, 8), impl="sdpa"
        )
        return result.out, result.entropy, result.map

    assert torch.autograd.gradcheck(call, (q, k, v, scale, mask)) and calls


@pytest.mark.parametrize("wanted", ["out", "entropy", "map"])
@pytest.mark.parametrize("gain", [1.0, 1e4])
@pytest.mark.parametrize("scale", [None, -0.3])
def test_gradients_of_each_output(wanted, gain, scale, calls):
    """Errors are at most twice those of the oracle in float32, which autograd differentiates, besides rounding."""
    torch.manual_seed(0)
    inputs = q, k, v = make_qkv(gain=gain, requires_grad=True)
    options = {"attn_mask": mask_of("bool"), "scale": scale, **MAP}
    index = {"out": 0, "entropy": 2, "map": 3}[wanted]
    results = [getattr(attend(*inputs, **options, return_entropy=True), wanted)]
    results += [attention_reference(*inputs, **options, compute_dtype=t)[index] for t in (torch.float64, torch.float32)]
    weight = torch.randn_like(results[0])
    ours, truth, same_dtype = (
        torch.autograd.grad((t * weight).sum(), inputs, allow_unused=True, materialize_grads=True) for t in results
    )
    factor = 40**-0.5 if scale is None else abs(scale)
    largest_dp = (weight @ v.mT if wanted == "out" else weight).abs().max()
    logits = (q.abs() @ k.abs().mT).max() * factor
    for one, exact, narrow, other in zip(ours, truth, same_dtype, (k, q, torch.ones(())), strict=True):
        term = torch.maximum(largest_dp * other.abs().max() * factor, exact.abs().max())
        rounding = torch.finfo(torch.float32).eps * term * (2 + logits)
        assert (one - exact).abs().max() <= 2 * (narrow - exact).abs().max() + rounding
    assert calls


def test_only_what_is_needed_gets_a_gradient(calls):
    q, k, v = make_qkv()
    for chosen in (q, k, v):
        leaf = chosen.clone().requires_grad_()
        inputs = [leaf if t is chosen else t for t in (q, k, v)]
        result = attend(*inputs, **MAP)
        (result.out.sum() + result.map.square().sum()).backward()
        assert leaf.grad is not None and leaf.grad.shape == chosen.shape
    assert len(calls) == 3


def test_any_strides(calls):
    """Heads inside of tokens, as diffusers passes them; gradients without strides, as that of a mean."""
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in make_qkv())
    dense = [t.detach().contiguous().requires_grad_() for t in (q, k, v)]
    for inputs in ((q, k, v), dense):
        result = attend(*inputs, **MAP)
        (result.out.mean() + result.map.mean()).backward()
    for one, other in zip((q, k, v), dense, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert len(calls) == 2


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=["B=0", "Nq=0", "Nk=0"])
def test_empty_sizes(sizes, calls):
    q, k, v = make_qkv(*sizes, 8, requires_grad=True)
    result = attend(q, k, v, return_entropy=True)
    assert calls and result.out.shape == q.shape and result.out.eq(0).all() and result.entropy.eq(0).all()
    grads = torch.autograd.grad(result.out.sum() + result.entropy.sum(), (q, k, v))
    assert all(g.eq(0).all() for g in grads)


def test_activation_checkpointing_and_a_second_derivative(calls):
    q, k, v = make_qkv(dtype=torch.float64, requires_grad=True)

    def call(q, k, v):
        return ea.attention(q, k, v, impl="sdpa", **MAP).map.square().sum()

    expected = torch.autograd.grad(call(q, k, v), (q, k))
    torch.testing.assert_close(torch.autograd.grad(checkpoint(call, q, k, v, use_reentrant=False), (q, k)), expected)
    (grad,) = torch.autograd.grad(call(q, k, v), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.square().sum().backward()
    assert len(calls) == 4


def test_what_is_kept_is_bounded(monkeypatch):
    """Beyond the limit, nothing that grows with queries x keys is kept; below it, the probabilities alone."""
    q, k, v = make_qkv(1, 2, 256, 128, 8, requires_grad=True)
    sizes = []

    def note(t):
        sizes.append(t.numel())
        return t

    for limit, largest in ((2 * 256 * 128 * 4, 2 * 256 * 128), (2 * 256 * 128 * 4 - 1, 2 * 256 * 8)):
        monkeypatch.setattr(kept, "KEPT_BYTES", limit)
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            ea.attention(q, k, v, map_keys=(3, 19), impl="sdpa")
        assert max(sizes) == largest and sum(size >= 256 * 128 for size in sizes) == (largest == 2 * 256 * 128)


def test_inside_a_transform_others_are_computed_again(calls):
    """Plain tensors that are attended inside a vmap over another one."""
    q, k, v = make_qkv(requires_grad=True)
    found = torch.vmap(lambda x: x + ea.attention(q, k, v, impl="sdpa", **MAP).map.sum())(torch.zeros(2))
    assert not calls
    torch.testing.assert_close(found, ea.attention(q, k, v, impl="sdpa", **MAP).map.sum().expand(2))
