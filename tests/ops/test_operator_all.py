"""Calls with key groups and statistics of rows under torch.compile, from torch's operations and the reference."""

from __future__ import annotations

import math

import pytest
import torch

import entropy_attn as ea
from entropy_attn.ops import operator_all
from tests.support import operator_all_checks as checks
from tests.support.oracle import make_qkv

NQ, NK = checks.NQ, checks.NK


FORMS_OF = {"auto": checks.FORMS, "reference": ("groups",)}


@pytest.mark.parametrize("impl", FORMS_OF)
def test_a_graph_has_the_results_of_the_eager_call(impl):
    checks.check_forward(impl, "cpu", FORMS_OF[impl])


@pytest.mark.parametrize("impl", FORMS_OF)
def test_gradients(impl):
    checks.check_gradients(impl, "cpu", FORMS_OF[impl])


@pytest.mark.parametrize("name", checks.FORMS)
def test_opcheck(name):
    checks.check_operator(name, "sdpa", "cpu")


def test_one_graph_for_all_values():
    checks.check_frames("sdpa", "cpu")


def test_a_statistic_that_has_a_flag_is_in_the_other_operator():
    q, k, v = make_qkv(1, 2, NQ, NK, 16)
    torch._dynamo.reset()
    compiled = torch.compile(checks.results, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, statistics=("entropy",))[1], checks.results(q, k, v, return_entropy=True)[1])


def test_layouts():
    checks.check_layouts("sdpa", "cpu")


@pytest.mark.slow
@torch.no_grad()
def test_inductor():
    q, k, v = make_qkv(2, 2, NQ, NK, 16)
    options = {**checks.key_arguments("cpu")["pairs"], **checks.EVERY}
    torch._dynamo.reset()
    found = torch.compile(checks.results, fullgraph=True)(q, k, v, **options)
    for ours, eager in zip(found, checks.results(q, k, v, **options), strict=True):
        assert torch.equal(ours, eager)


def test_grouped_heads_causality_and_autocast():
    q, k, v = make_qkv(2, 4, NQ, NK, 16, heads_kv=2)
    options = {"key_scale": [((0, 5), 1.5)], "is_causal": True, "enable_gqa": True, **checks.EVERY}
    for dtype in (None, torch.bfloat16):
        torch._dynamo.reset()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            eager = checks.results(q, k, v, **options)
            found = torch.compile(checks.results, backend="aot_eager", fullgraph=True)(q, k, v, **options)
        assert found[0].dtype == eager[0].dtype == (dtype or torch.float32) and found[1].dtype == torch.float32
        assert all(torch.equal(ours, other) for ours, other in zip(found, eager, strict=True))


def test_a_second_derivative_raises():
    q, k, v = make_qkv(1, 2, NQ, NK, 16, requires_grad=True)
    with checks.Calls() as calls:
        torch.compile(checks.results, backend=calls.backend)(q, k, v, statistics=("variance",))
    (arguments,) = calls.made
    (first,) = torch.autograd.grad(operator_all._attention_all(*arguments)[4].sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative; impl='reference' has"):
        first.sum().backward()
    with pytest.raises(ea.Unsupported, match=r"inside torch.vmap: put that dimension into the batch"):
        torch.vmap(lambda q: operator_all._attention_all(q, *arguments[1:])[0])(q[None])


@pytest.mark.parametrize(
    "given, error",
    [
        ({"key_scale": torch.full((NK,), math.nan)}, "key_scale: expected finite numbers, got nan"),
        ({"key_bias": [((0, 4), math.inf)]}, "key_bias: expected finite numbers or -inf, got inf"),
        ({"key_bias": torch.zeros(NK + 1)}, r"key_bias: expected a shape that broadcasts to \(batch, heads, keys\)"),
        ({"key_bias": [((0, 4), 1.0), ((3, 6), 1.0)]}, "key_bias: expected ranges of keys without overlap"),
        (
            {"key_bias": torch.zeros(2, NK), "key_rows": torch.full((NQ,), 2)},
            "key_rows: expected numbers of groups from 0 to 1, got 2 to 2",
        ),
    ],
    ids=["values", "a number", "a shape", "overlap", "groups"],
)
def test_values_are_checked_when_the_graph_runs(given, error):
    q, k, v = make_qkv(1, 2, NQ, NK, 16)
    torch._dynamo.reset()
    for call in (checks.results, torch.compile(checks.results, backend="aot_eager", fullgraph=True)):
        with pytest.raises(ValueError, match=error):
            call(q, k, v, **given)


@pytest.mark.parametrize(
    "given, error",
    [
        ({"key_rows": (0, 3)}, "key_rows: expected None without key_scale and key_bias"),
        ({"key_bias": []}, "key_bias: expected at least one pair"),
        ({"key_bias": 3.0}, "key_bias: expected a tensor, or pairs"),
        ({"key_scale": [((0, 4), True)]}, "key_scale: expected a number or a tensor for each range of keys, got True"),
        ({"key_scale": [((0, NK + 1), 1.0)]}, "key_scale: expected 0 <= start < stop <= 20"),
        ({"statistics": ("mass",), "mass_keys": (4, 4)}, "mass_keys: expected 0 <= start < stop <= 20"),
        ({"key_bias": [((0, 4), 1.0)], "impl": "triton"}, "impl='triton' cannot serve this call: .*float64"),
    ],
    ids=["rows", "no pair", "no table", "no number", "a range", "a range of mass", "the implementation"],
)
def test_the_rest_is_checked_while_the_call_is_traced(given, error):
    q, k, v = make_qkv(1, 2, NQ, NK, 16, dtype=torch.float64)
    with pytest.raises((ValueError, TypeError, ea.Unsupported), match=error):
        checks.results(q, k, v, **given)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match=error):
        torch.compile(checks.results, backend="aot_eager", fullgraph=True)(q, k, v, **given)


def test_without_fullgraph_such_an_error_is_the_eager_one():
    q, k, v = make_qkv(1, 2, NQ, NK, 16, dtype=torch.float64)
    torch._dynamo.reset()
    with pytest.raises(ea.Unsupported, match=r"dtype torch\.float64 of the query"):
        torch.compile(checks.results, backend="eager")(q, k, v, key_bias=torch.zeros(NK), impl="triton")
