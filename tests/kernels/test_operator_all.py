"""The operator of key groups and statistics of rows with the Triton kernels."""

from __future__ import annotations

import pytest
import torch

import entropy_attn as ea
from tests.kernels.calls import DEVICE
from tests.support import operator_all_checks as checks
from tests.support.oracle import make_qkv


def test_a_graph_has_the_results_of_the_eager_call():
    checks.check_forward("triton", DEVICE, ("pairs", "groups"))


@pytest.mark.slow
def test_gradients():
    checks.check_gradients("triton", DEVICE, ("groups",), of_tables=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [form for form in checks.FORMS if form != "no tables"])
def test_opcheck(name):
    checks.check_operator(name, "triton", DEVICE, of_tables=False)


@pytest.mark.slow
def test_one_graph_for_all_values():
    checks.check_frames("triton", DEVICE)


def test_what_has_no_gradient_is_refused_by_name():
    q, k, v = make_qkv(1, 2, checks.NQ, checks.NK, 16, device=DEVICE)
    bias = torch.zeros(checks.NK, device=DEVICE, requires_grad=True)

    def call(impl):
        return ea.attention(q, k, v, key_bias=bias, impl=impl, statistics=("variance",))

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="no gradient of key_bias"):
        torch.compile(call, backend="aot_eager", fullgraph=True)("triton")
    with pytest.raises(ea.Unsupported, match=r"no gradient of key_bias.*no gradient of the statistic 'variance'"):
        torch.compile(call, backend="aot_eager")("triton")
    torch._dynamo.reset()
    found = torch.compile(call, backend="aot_eager", fullgraph=True)("auto")  # goes to torch's operations
    (gradient,) = torch.autograd.grad(found.variance.sum() + found.out.sum(), bias)
    (expected,) = torch.autograd.grad(sum(call("reference")[at].sum() for at in (0, 4)), bias)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
