"""A factor and a bias by key: against their definition in float64, gradients, groups of queries, what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F

import entropy_attn as ea
from entropy_attn.ops import row_blocks
from entropy_attn.ops.key_groups import checked_key_groups
from entropy_attn.ops.reference import attention_reference
from tests.ops.test_sdpa import LargestTensor
from tests.support.oracle import assert_within_budget, logit_rounding, make_qkv, torch_same_dtype

IMPLS = ["auto", "sdpa", "reference"]
ALL = {
    "return_lse": True,
    "statistics": ("entropy", "variance", "max", "mass"),
    "mass_keys": (5, 30),
    "map_keys": (3, 20),
}
FIELDS = ea.AttentionOutput._fields
NQ, NK = 33, 47


def rand(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def definition(q, k, v, factor, bias, *, mask=None, scale=None, mass_keys=(5, 30), map_keys=(3, 20)):
    """Every result of `ea.attention` as its documentation writes it; factor and bias broadcast to (B, H, Nq, Nk)."""
    q, k, v = q.double(), k.double(), v.double()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = scale * factor * (q @ k.mT) + bias
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf)
    p = torch.softmax(s, -1)
    finite = s.masked_fill(s == -math.inf, 0.0)
    mean = (p * finite).sum(-1, keepdim=True)
    return {
        "out": p @ v,
        "lse": torch.logsumexp(s, -1),
        "entropy": torch.special.entr(p).sum(-1),
        "map": p[..., slice(*map_keys)].mean(1),
        "variance": (p * finite.square()).sum(-1) - mean.squeeze(-1).square(),
        "max": s.max(-1).values,
        "mass": p[..., slice(*mass_keys)].sum(-1),
    }


def named(name):
    return lambda message: f"{name}: {message}"


def dense(part, start, stop):
    """A table for the queries start to stop alone, 1 for a factor and 0 for a bias elsewhere."""
    table, neutral = part
    rows = torch.arange(NQ)[:, None]
    return torch.where((rows >= start) & (rows < stop), table, neutral)


FACTOR, BIAS = 1.0 + 0.3 * rand(NK), rand(NK, seed=2)
PAIRS = [((3, 9), 1.3), (slice(20, None), 0.0), ((9, 11), -0.5)]
OF_PAIRS = torch.ones(NK, dtype=torch.float64)
OF_PAIRS[3:9], OF_PAIRS[20:], OF_PAIRS[9:11] = 1.3, 0.0, -0.5
HEADS = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64)
BY_HEAD = torch.ones(4, NK, dtype=torch.float64)
BY_HEAD[:, 4:7] = HEADS[:, None]
GROUPS = torch.randint(0, 3, (NQ,), generator=torch.Generator().manual_seed(4))
TABLE = rand(2, 1, 3, NK, seed=5)
HIDDEN = torch.zeros(NK, dtype=torch.float64)
HIDDEN[:13] = -math.inf

# name: (arguments, factor, bias) with the last two as the definition takes them
FORMS = {
    "a vector": ({"key_scale": FACTOR}, FACTOR, 0.0),
    "a bias": ({"key_bias": BIAS}, 1.0, BIAS),
    "ranges": ({"key_scale": PAIRS, "key_bias": [((0, 47), 0.1)]}, OF_PAIRS, 0.1),
    "by head": ({"key_scale": [((4, 7), HEADS)]}, BY_HEAD[:, None], 0.0),
    "by head and sample": (
        {"key_scale": FACTOR * rand(2, 4, 1, seed=3), "key_bias": rand(2, 1, NK)},
        (FACTOR * rand(2, 4, 1, seed=3))[:, :, None],
        rand(2, 1, NK)[:, :, None],
    ),
    "excluded keys": ({"key_bias": [((0, 13), -math.inf)]}, 1.0, HIDDEN),
    "some queries": (
        {"key_scale": FACTOR, "key_bias": BIAS, "key_rows": (4, 20)},
        dense((FACTOR, 1.0), 4, 20),
        dense((BIAS, 0.0), 4, 20),
    ),
    "the last queries": ({"key_bias": BIAS, "key_rows": slice(-5, None)}, 1.0, dense((BIAS, 0.0), 28, 33)),
    "groups of queries": ({"key_bias": TABLE, "key_rows": GROUPS}, 1.0, TABLE[:, :, GROUPS]),
    "groups of queries with factors": (
        {"key_scale": 1.0 + TABLE[0, 0], "key_bias": TABLE[1], "key_rows": GROUPS.int()},
        (1.0 + TABLE[0, 0])[GROUPS],
        TABLE[1][:, GROUPS],
    ),
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_result_is_that_of_the_definition(form, impl, masked):
    options, factor, bias = FORMS[form]
    q, k, v = make_qkv(dtype=torch.float64, head_dim_v=24)
    mask = torch.rand(2, 1, NQ, NK, generator=torch.Generator().manual_seed(6)) > 0.3 if masked else None
    result = ea.attention(q, k, v, attn_mask=mask, scale=0.3, impl=impl, **options, **ALL)
    wanted = definition(q, k, v, factor, bias, mask=mask, scale=0.3)
    for name in FIELDS:
        torch.testing.assert_close(getattr(result, name), wanted[name], rtol=1e-9, atol=1e-9, msg=named(name))
    plain = ea.attention(q, k, v, attn_mask=mask, scale=0.3, impl=impl, **options)
    torch.testing.assert_close(plain.out, wanted["out"])
    assert plain[1:] == (None,) * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_half_precision_stays_within_the_budget(dtype, statistics, impl):
    """Against the float64 result of keys that have their factor already, and a mask that is the bias."""
    q, k, v = make_qkv(dtype=dtype, gain=2.0)
    factor, bias = FACTOR.to(dtype), BIAS.to(dtype)
    folded = {"query": q, "key": k.double() * factor.double()[:, None], "value": v}
    options = {"attn_mask": bias.double(), "map_keys": (3, 20)}
    truth = attention_reference(**folded, **options)
    same = torch_same_dtype(q, (k.float() * factor[:, None]).to(dtype), v, attn_mask=bias, map_keys=(3, 20))
    moved = logit_rounding(**folded, **options)
    asked = {"return_lse": True, "return_entropy": True, "map_keys": (3, 20)} if statistics else {}
    result = ea.attention(q, k, v, key_scale=factor, key_bias=bias, impl=impl, **asked)
    assert result.out.dtype == dtype
    for name, actual, t, s, m in zip(FIELDS[:4], result[:4], truth, same, moved, strict=True):
        assert (actual is not None) == (statistics or name == "out")
        if actual is not None:
            assert_within_budget(actual, t, s, m, name)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("statistics", [False, True])
def test_together_with_causality(impl, statistics):
    q, k, v = make_qkv(dtype=torch.float64)
    keep = torch.ones(NQ, NK, dtype=torch.bool).tril()
    wanted = definition(q, k, v, FACTOR, BIAS, mask=keep)
    result = ea.attention(
        q, k, v, is_causal=True, key_scale=FACTOR, key_bias=BIAS, impl=impl, **(ALL if statistics else {})
    )
    for name in FIELDS if statistics else ("out",):
        torch.testing.assert_close(getattr(result, name), wanted[name], msg=named(name))


@pytest.mark.parametrize("statistics", [False, True])
def test_grouped_heads(statistics):
    q, k, v = make_qkv(heads=4, heads_kv=2, dtype=torch.float64)
    full = [t.repeat_interleave(2, dim=1) for t in (k, v)]
    for options in ({"key_scale": FACTOR, "key_bias": BIAS}, {"key_scale": [((4, 7), HEADS)]}):
        asked = ALL if statistics else {}
        for ours, theirs in zip(
            ea.attention(q, k, v, enable_gqa=True, **options, **asked),
            ea.attention(q, *full, **options, **asked),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_statistics_alone_and_in_both_ways_of_asking():
    q, k, v = make_qkv(dtype=torch.float64)
    for impl in IMPLS:
        result = ea.attention(q, k, v, statistics=("max",), impl=impl)
        torch.testing.assert_close(result.max, (q @ k.mT * 40**-0.5).amax(-1))
        assert [name for name, t in result._asdict().items() if t is not None] == ["out", "max"]
        result = ea.attention(q, k, v, statistics=["lse"], return_entropy=True, impl=impl)
        assert [name for name, t in result._asdict().items() if t is not None] == ["out", "lse", "entropy"]
        assert ea.unsupported_reasons(q, k, v, statistics=("variance",), impl=impl) == []


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("gain", [1.0, 1e4])
def test_the_variance_is_how_the_entropy_answers_the_scale(impl, gain):
    q, k, v = make_qkv(dtype=torch.float64, gain=gain)
    scale = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(NQ, NK, generator=torch.Generator().manual_seed(0)) > 0.3
    result = ea.attention(q, k, v, scale=scale, attn_mask=mask, impl=impl, statistics=("entropy", "variance"))
    (slope,) = torch.autograd.grad(result.entropy.sum(), scale)
    torch.testing.assert_close(-scale.detach() * slope, result.variance.sum().detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
def test_rows_without_keys(impl):
    q, k, v = make_qkv(1, 2, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(2, 6, dtype=torch.float64)
    bias[1] = -math.inf
    groups = torch.tensor([0, 1, 1, 0])
    result = ea.attention(
        q, k, v, key_bias=bias, key_rows=groups, impl=impl, **(ALL | {"mass_keys": (1, 3), "map_keys": (0, 2)})
    )
    for name, empty in (
        ("lse", -math.inf),
        ("max", -math.inf),
        ("entropy", 0),
        ("variance", 0),
        ("mass", 0),
        ("out", 0),
    ):
        rows = getattr(result, name)[:, :, 1:3]
        assert rows.eq(empty).all(), name
    assert result.map[:, 1:3].eq(0).all()
    finite = [t[:, :, [0, 3]].sum() if t.dim() > 3 or t.shape[1] == 2 else t.sum() for t in result]
    grads = torch.autograd.grad(sum(finite), (q, k, v))
    assert all(g.isfinite().all() for g in grads) and grads[0][:, :, 1:3].eq(0).all() and grads[0][:, :, 0].any()


def test_infinite_and_undefined_logits_make_the_statistics_undefined():
    q, k, v = make_qkv(1, 1, 3, 5, 4, dtype=torch.float64)
    q[0, 0, 1, 0] = math.nan
    for impl in ("sdpa", "reference"):
        result = ea.attention(q, k, v, statistics=("variance", "max", "mass"), mass_keys=(0, 2), impl=impl)
        for t in (result.variance, result.max, result.mass):
            assert t[0, 0].isnan().tolist() == [False, True, False]


GRADIENT_FORMS = ("a vector", "a bias", "by head and sample", "some queries", "groups of queries with factors")


@pytest.mark.parametrize("form", GRADIENT_FORMS)
@pytest.mark.parametrize("impl", ["sdpa", "sdpa in many blocks", "reference"])
def test_gradients_numerically(form, impl, monkeypatch):
    if impl == "sdpa in many blocks":
        monkeypatch.setattr(row_blocks, "BLOCK_SCORES_CPU", 10)
        monkeypatch.setattr(row_blocks, "MIN_BLOCK_ROWS", 2)
        impl = "sdpa"
    batch = 2 if form == "by head and sample" else 1
    q, k, v = make_qkv(batch, 2, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    rows = {"some queries": (1, 3), "groups of queries with factors": torch.tensor([0, 1, 1, 0])}.get(form)
    shape = {"by head and sample": (2, 2, 5), "groups of queries with factors": (2, 5)}.get(form, (5,))
    factor = (1.0 + 0.3 * rand(*shape)).requires_grad_() if form != "a bias" else None
    bias = rand(*shape, seed=3).requires_grad_() if form != "a vector" else None

    def call(q, k, v, factor, bias):
        r = ea.attention(
            q, k, v, key_scale=factor, key_bias=bias, key_rows=rows, return_lse=True, map_keys=(1, 4), mass_keys=(2, 4),
            statistics=("entropy", "variance", "max", "mass"), impl=impl,
        )  # fmt: skip
        return tuple(r)

    assert torch.autograd.gradcheck(call, (q, k, v, factor, bias))


def test_gradients_reach_the_values_of_ranges():
    q, k, v = make_qkv(dtype=torch.float64)
    factor = torch.tensor([1.2, 0.7, 1.0, 0.4], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def call(factor, bias):
        out = ea.attention(q, k, v, key_scale=[((3, 9), factor)], key_bias=[((20, 30), bias)]).out
        return out.mean(2).square().sum(-1)

    assert torch.autograd.gradcheck(call, (factor, bias))


def test_the_gradient_of_a_shared_maximum_is_shared():
    q = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    k = torch.ones(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    for impl in ("sdpa", "reference"):
        result = ea.attention(q, k, k.detach(), statistics=("max",), impl=impl)
        (grad,) = torch.autograd.grad(result.max.sum(), k)
        torch.testing.assert_close(grad, torch.full_like(grad, 0.5 / 3))


@pytest.mark.parametrize("statistics", [False, True])
def test_never_holds_a_score_matrix(statistics, monkeypatch):
    """Also with factors and a bias for some of the queries."""
    monkeypatch.setattr(row_blocks, "BLOCK_SCORES_CPU", 1 << 14)
    n, heads = 1024, 2
    q, k, v = make_qkv(1, heads, n, n, 8, requires_grad=True)
    factor, bias = (rand(heads, n, dtype=torch.float32).requires_grad_() for _ in range(2))
    asked = {"statistics": ("entropy", "variance", "max")} if statistics else {}
    with LargestTensor() as mode:
        result = ea.attention(q, k, v, key_scale=factor, key_bias=bias, key_rows=(100, 900), **asked)
        sum(t.sum() for t in result if t is not None).backward()
    assert mode.numel < heads * n * n / 8
    assert factor.grad.any() and bias.grad.any()


def test_numbers_in_ranges_take_the_dtype_that_holds_them():
    """A wider bias makes torch compute everything in the wider dtype."""
    q, k, _ = make_qkv(dtype=torch.bfloat16)
    for value, dtype in ((-math.inf, torch.bfloat16), (2.0, torch.bfloat16), (math.log(1.2), torch.float32)):
        _, table, _ = checked_key_groups(None, [((0, 3), value)], None, q, k)
        assert table.dtype == dtype and table.shape == (1, 1, 1, NK)
        assert table[0, 0, 0, 0].item() == torch.tensor(value, dtype=torch.float32).item()


def test_the_triton_kernels_refuse_gradients_of_these_arguments_by_name():
    q, k, v = make_qkv(requires_grad=True)
    factor = torch.ones(NK, requires_grad=True)
    given = {
        "gradient of key_scale": {"key_scale": factor},
        "gradient of key_bias": {"key_bias": [((0, 4), factor[0])]},
        "statistic 'variance'": {"statistics": ("variance",)},
        "statistic 'max'": {"statistics": ("max",)},
        "statistic 'mass'": {"statistics": ("mass",), "mass_keys": (0, 4)},
    }
    for name, options in given.items():
        (reason,) = (r for r in ea.unsupported_reasons(q, k, v, **options) if name in r)
        assert reason.endswith('impl="sdpa"')
        with pytest.raises(ea.Unsupported, match=re.escape(name)):
            ea.attention(q, k, v, impl="triton", **options)


def test_transforms_pass_through_the_reference_alone():
    q, k, v = make_qkv(1, 2, 4, 5, 8, dtype=torch.float64)

    def total(bias, impl):
        return ea.attention(q, k, v, key_bias=bias, impl=impl, statistics=("variance",)).variance.sum()

    bias = rand(5).requires_grad_()
    (wanted,) = torch.autograd.grad(total(bias, "sdpa"), bias)
    torch.testing.assert_close(torch.func.grad(lambda b: total(b, "reference"))(bias.detach()), wanted)
    for impl in ("sdpa", "auto"):
        with pytest.raises(ea.Unsupported, match=r"key_bias is inside torch.func.grad"):
            torch.func.grad(lambda b, impl=impl: total(b, impl))(bias.detach())
        with pytest.raises(ea.Unsupported, match=r"key_scale\[0\] is inside torch.func.grad"):
            torch.func.grad(lambda f, impl=impl: ea.attention(q, k, v, key_scale=[((0, 2), f)], impl=impl).out.sum())(
                torch.tensor(1.0, dtype=torch.float64)
            )


def test_autocast_casts_the_call_and_not_the_bias():
    q, k, v = make_qkv()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ea.attention(q, k, v, key_scale=FACTOR.float(), key_bias=BIAS.float(), **ALL)
    cast = (t.bfloat16() for t in (q, k, v))
    outside = ea.attention(*cast, key_scale=FACTOR.float(), key_bias=BIAS.float(), **ALL)
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a, b)


def test_a_uniform_factor_is_a_scale_and_a_uniform_bias_is_nothing():
    q, k, v = make_qkv()
    ours = ea.attention(q, k, v, key_scale=[((0, NK), 1.5)], key_bias=[((0, NK), 3.0)], return_entropy=True)
    torch.testing.assert_close(ours.out, F.scaled_dot_product_attention(q, k, v, scale=1.5 * 40**-0.5))
    torch.testing.assert_close(ours.entropy, ea.attention(q, k, v, scale=1.5 * 40**-0.5, return_entropy=True).entropy)


REFUSED = [
    ({"key_scale": 1.2}, TypeError, "key_scale: expected a tensor, or pairs ((start, stop), value), got 1.2"),
    ({"key_scale": []}, ValueError, "key_scale: expected at least one pair"),
    ({"key_bias": [(0, 3, 1.0)]}, TypeError, "key_bias: expected a tensor, or pairs ((start, stop), value), got (0, 3"),
    (
        {"key_bias": [((0, 3), "1")]},
        TypeError,
        "key_bias: expected a number or a tensor for each range of keys, got '1'",
    ),
    ({"key_bias": [((0, 3), True)]}, TypeError, "for each range of keys, got True"),
    ({"key_bias": [((0, 3), math.nan)]}, ValueError, "key_bias: expected finite numbers or -inf, got nan"),
    ({"key_bias": [((0, 3), math.inf)]}, ValueError, "key_bias: expected finite numbers or -inf, got inf"),
    ({"key_scale": [((0, 3), -math.inf)]}, ValueError, "key_scale: expected finite numbers, got -inf"),
    ({"key_scale": [((0, 48), 1.0)]}, ValueError, "key_scale: expected 0 <= start < stop <= 47, got (0, 48)"),
    ({"key_scale": [(3, 1.0)]}, TypeError, "key_scale: expected a range (start, stop) or a slice of keys, got 3"),
    (
        {"key_scale": [((0, 5), 1.0), ((4, 9), 1.0)]},
        ValueError,
        "ranges of keys without overlap, got one to 5 and (4, 9)",
    ),
    ({"key_scale": [((0, 5), torch.ones(3))]}, ValueError, "(batch, heads) = (2, 4), got shape (3,)"),
    ({"key_scale": [((0, 5), torch.ones(4).long())]}, TypeError, "floating-point tensor, got torch.int64"),
    ({"key_scale": torch.ones(46)}, ValueError, "(batch, heads, keys) = (2, 4, 47) with all keys, got (46,)"),
    ({"key_scale": torch.ones(3, 47)}, ValueError, "got (3, 47)"),
    ({"key_scale": torch.ones(2, 4, 1, 47)}, ValueError, "got (2, 4, 1, 47)"),
    ({"key_scale": torch.ones(1)}, ValueError, "with all keys, got (1,)"),
    ({"key_scale": torch.full((47,), math.nan)}, ValueError, "key_scale: expected finite numbers, got nan"),
    ({"key_bias": torch.full((47,), math.inf)}, ValueError, "key_bias: expected finite numbers or -inf, got inf"),
    ({"key_bias": torch.zeros(47, dtype=torch.int32)}, TypeError, "key_bias: expected a floating-point tensor"),
    ({"key_bias": torch.zeros(47, device="meta")}, ValueError, "key_bias: expected the query's device cpu, got meta"),
    ({"key_rows": (0, 3)}, ValueError, "key_rows: expected None without key_scale and key_bias, got (0, 3)"),
    ({"key_bias": BIAS, "key_rows": (0, 34)}, ValueError, "key_rows: expected 0 <= start < stop <= 33, got (0, 34)"),
    ({"key_bias": BIAS, "key_rows": 3}, TypeError, "key_rows: expected None, (start, stop), a slice or a tensor"),
    (
        {"key_bias": BIAS, "key_rows": torch.zeros(33)},
        TypeError,
        "key_rows: expected an integer tensor, got torch.float32",
    ),
    ({"key_bias": TABLE, "key_rows": GROUPS[:-1]}, ValueError, "one group number per query, (33,), got (32,)"),
    ({"key_bias": TABLE, "key_rows": GROUPS + 1}, ValueError, "numbers of groups from 0 to 2, got 1 to 3"),
    ({"key_bias": TABLE, "key_rows": GROUPS.to("meta")}, ValueError, "a plain tensor on the cpu, got one on meta"),
    ({"key_bias": BIAS, "key_rows": GROUPS}, ValueError, "(batch, heads, groups, keys) = (2, 4, groups, 47)"),
    (
        {"key_bias": [((0, 3), 1.0)], "key_rows": GROUPS},
        TypeError,
        "a tensor with a row per group of queries, got list",
    ),
    (
        {"key_bias": TABLE, "key_scale": TABLE[:, :, :2], "key_rows": GROUPS},
        ValueError,
        "as many groups of queries, got {'key_scale': 2, 'key_bias': 3}",
    ),
    (
        {"key_bias": BIAS, "key_rows": (0, 3), "is_causal": True},
        ValueError,
        "key_rows: expected None with is_causal=True",
    ),
    ({"statistics": "max"}, TypeError, "statistics: expected a tuple of names among 'lse', 'entropy'"),
    ({"statistics": None}, TypeError, "got None"),
    ({"statistics": ("top",)}, ValueError, "got 'top' among them"),
    ({"statistics": ("mass",)}, ValueError, "mass_keys: expected a range of keys with the statistic 'mass', got None"),
    ({"mass_keys": (0, 3)}, ValueError, "mass_keys: expected None without the statistic 'mass', got (0, 3)"),
    ({"statistics": ("mass",), "mass_keys": (0, 50)}, ValueError, "mass_keys: expected 0 <= start < stop <= 47"),
]


@pytest.mark.parametrize("options, error, message", REFUSED, ids=lambda value: str(value)[:40])
def test_wrong_arguments(options, error, message):
    q, k, v = make_qkv()
    for call in (ea.attention, ea.unsupported_reasons):
        with pytest.raises(error, match=re.escape(message)):
            call(q, k, v, **options)
