"""The torch implementation against the oracle: values, gradients, memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.ops import row_blocks
from entropy_attn.ops.reference import attention_reference
from entropy_attn.ops.sdpa import attention_sdpa
from tests.support.oracle import NAMES, assert_matches_oracle, make_qkv, poisoned_memory

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SCALES = [None, 0.0, -0.4, 2.0]


def attend(q, k, v, *, enable_gqa=False, **options):
    """`enable_gqa` allows grouped heads in other calls; here the shapes decide."""
    call = AttentionCall(q, k, v, **options)
    assert enable_gqa or not call.grouped
    return attention_sdpa(call)


def run(q, k, v, **options):
    with poisoned_memory():
        return attend(q, k, v, return_lse=True, return_entropy=True, **options)


@pytest.fixture(params=[False, True], ids=["one-block", "many-blocks"])
def small_blocks(request, monkeypatch):
    """Many blocks: of several rows of one head, and, if rows are short, of several heads."""
    if request.param:
        monkeypatch.setattr(row_blocks, "BLOCK_SCORES_CPU", 300)
        monkeypatch.setattr(row_blocks, "MIN_BLOCK_ROWS", 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_matches_oracle(dtype, is_causal, scale, small_blocks):
    q, k, v = make_qkv(head_dim_v=24, dtype=dtype)
    options = {"is_causal": is_causal, "scale": scale}
    result = run(q, k, v, **options, map_keys=(20, 45))
    assert [t.dtype for t in result] == [dtype, *[torch.promote_types(dtype, torch.float32)] * 3]
    assert_matches_oracle(result, q, k, v, **options, map_keys=(20, 45))
    plain = attend(q, k, v, **options)
    assert plain[1:] == (None, None, None)
    assert_matches_oracle(plain, q, k, v, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_per_head_scale_with_grouped_heads(dtype, small_blocks):
    q, k, v = make_qkv(heads=4, heads_kv=2, dtype=dtype)
    options = {"scale": torch.tensor([0.0, 0.3, -0.2, 1.0]), "enable_gqa": True, "map_keys": (0, 47)}
    assert_matches_oracle(run(q, k, v, **options), q, k, v, **options)


@pytest.mark.parametrize("gain", [1e2, 1e4, 1e5])
def test_extreme_logits(gain):
    q, k, v = make_qkv(gain=gain)
    result = run(q, k, v, map_keys=(0, 40))
    assert_matches_oracle(result, q, k, v, map_keys=(0, 40))
    assert (result[2] >= 0).all()


def test_a_common_offset_of_the_logits_costs_no_accuracy():
    q, k, v = make_qkv(gain=3.0)
    k = k + 300.0 * q.mean(dim=2, keepdim=True)
    result = run(q, k, v)
    assert result[1].abs().max() > 1e3
    assert_matches_oracle(result, q, k, v)


def test_any_strides():
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in make_qkv())
    assert not q.is_contiguous()
    assert_matches_oracle(run(q, k, v), q, k, v)
    wide = torch.randn(2, 4, 47, 3 * 40)
    q, k, v = wide[..., :40], wide[..., 40:80], wide[..., 80:]
    assert_matches_oracle(run(q, k, v), q, k, v)
    q, k, v = make_qkv(1)
    k, v = k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1)
    assert_matches_oracle(run(q.expand(2, -1, -1, -1), k, v), q.expand(2, -1, -1, -1), k, v)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_shapes_and_masks(data):
    batch, heads_kv, group = (data.draw(st.integers(1, 3)) for _ in range(3))
    nq, nk, d, dv = (data.draw(st.integers(1, 40)) for _ in range(4))
    heads = heads_kv * group
    q, k, v = make_qkv(batch, heads, nq, nk, d, heads_kv=heads_kv, head_dim_v=dv, seed=data.draw(st.integers(0, 99)))
    shape = [data.draw(st.sampled_from([1, n])) for n in (batch, heads, nq, nk)][data.draw(st.integers(0, 3)) :]
    keep = torch.rand(shape) > data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    additive = data.draw(st.booleans())
    mask = torch.randn(shape).masked_fill(~keep, -math.inf) if additive else keep
    start = data.draw(st.integers(0, nk - 1))
    options = {"attn_mask": mask, "enable_gqa": True, "scale": data.draw(st.sampled_from(SCALES))}
    options["map_keys"] = start, data.draw(st.integers(start + 1, nk))
    result = run(q, k, v, **options)
    assert_matches_oracle(result, q, k, v, **options)
    assert (result[2] >= 0).all() and (result[2] <= math.log(nk) + 1e-5).all()


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=["B=0", "Nq=0", "Nk=0"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_empty_sizes(sizes, is_causal):
    q, k, v = make_qkv(*sizes, 8, requires_grad=True)
    map_keys = (0, 2) if sizes[3] else None  # an earlier check refuses a range without keys
    out, lse, entropy, head_mean = run(q, k, v, is_causal=is_causal, map_keys=map_keys)
    assert map_keys is None or head_mean.shape == (sizes[0], sizes[2], 2)
    assert out.shape == q.shape and lse.shape == entropy.shape == q.shape[:3]
    assert out.eq(0).all() and lse.eq(-math.inf).all() and entropy.eq(0).all()
    grads = torch.autograd.grad(out.sum() + entropy.sum(), (q, k, v))
    assert all(g.eq(0).all() for g in grads)
    assert attend(q, k, v, is_causal=is_causal)[0].eq(0).all()


@pytest.mark.parametrize("case", ["plain", "causal", "bool", "additive", "column"])
def test_gradients_numerically(case, small_blocks):
    q, k, v = make_qkv(2, 4, 7, 9, 3, heads_kv=2, head_dim_v=2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.4, -0.8, 0.0, 1.5], dtype=torch.float64, requires_grad=True)
    keep = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) > 0.4
    keep[3] = False
    shape = {"additive": (4, 1, 9), "column": (2, 1, 7, 1)}.get(case)
    mask = keep if case == "bool" else None
    if shape:
        mask = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def call(q, k, v, scale, mask):
        out, lse, entropy, head_mean = attend(
            q, k, v, scale=scale, attn_mask=mask, is_causal=case == "causal", enable_gqa=True, return_lse=True,
            return_entropy=True, map_keys=(2, 8),
        )  # fmt: skip
        return out, lse.masked_fill(lse.isinf(), 0.0), entropy, head_mean

    assert torch.autograd.gradcheck(call, (q, k, v, scale, mask))


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.parametrize("gain", [1.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_each_output(wanted, gain, seed):
    torch.manual_seed(seed)
    index = NAMES.index(wanted)
    inputs = q, k, v = make_qkv(gain=gain, seed=seed, requires_grad=True)
    options = {"map_keys": (10, 40)}
    weight = torch.randn_like(run(*inputs, **options)[index])
    mask = torch.rand(33, 47) > 0.5
    mask[7] = False
    results = []
    for result in (
        run(*inputs, attn_mask=mask, **options),
        attention_reference(*inputs, attn_mask=mask, **options),
        attention_reference(*inputs, attn_mask=mask, **options, compute_dtype=torch.float32),
    ):
        loss = (result[index].masked_fill(result[index].isinf(), 0.0) * weight).sum()
        results.append(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
    # dS is P times a difference, which is 0 for one-hot rows: its rounding error is relative to the size of its terms,
    # not of the result. At large logits, the rounding of the logits also changes P.
    largest_dp = (weight @ v.mT if wanted == "out" else weight).abs().max()
    logits = (q.abs() @ k.abs().mT).max() * 40**-0.5
    for ours, truth, same_dtype, other in zip(*results, (k, q, torch.ones(())), strict=True):
        term = torch.maximum(largest_dp * other.abs().max() * 40**-0.5, truth.abs().max())
        rounding = torch.finfo(torch.float32).eps * term * (2 + logits)
        assert (ours - truth).abs().max() <= 2 * (same_dtype - truth).abs().max() + rounding


def test_gradients_under_activation_checkpointing():
    inputs = make_qkv(requires_grad=True)

    def call(q, k, v):
        return attend(q, k, v, return_entropy=True)[2]

    expected = torch.autograd.grad(call(*inputs).sum(), inputs, allow_unused=True, materialize_grads=True)
    recomputed = checkpoint(call, *inputs, use_reentrant=False)
    actual = torch.autograd.grad(recomputed.sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(actual, expected)


def test_a_second_derivative_raises():
    q, k, v = make_qkv(1, 1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    for index in (2, 3):
        out, *statistics = run(q, k, v, map_keys=(0, 2))
        (grad,) = torch.autograd.grad(statistics[index - 1].sum(), q, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivative"):
            (out.sum() + grad.square().sum()).backward()


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.untyped_storage().nbytes() // t.element_size())
        return result


def test_never_holds_a_score_matrix(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_SCORES_CPU", 1 << 14)
    heads, dim, largest = 2, 8, {}
    for n in (512, 1024):
        q, k, v = make_qkv(1, heads, n, n, dim, requires_grad=True)
        with LargestTensor() as mode:
            out, lse, entropy, head_mean = attend(
                q, k, v, return_lse=True, return_entropy=True, is_causal=True, map_keys=(3, 19)
            )
            (out.sum() + lse.sum() + entropy.sum() + head_mean.square().sum()).backward()
        largest[n] = mode.numel
    assert largest[512] < heads * 512 * 512 / 8
    assert largest[1024] <= 2 * largest[512]
