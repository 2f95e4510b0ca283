"""The operator with the Triton kernels."""

from __future__ import annotations

import pytest
import torch

import entropy_attn as ea
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.ops import operator
from entropy_attn.ops.reference import all_results
from tests.kernels.calls import DEVICE
from tests.support import operator_checks as checks
from tests.support.oracle import make_qkv


@pytest.mark.parametrize(
    "check",
    [checks.check_operator, checks.check_frames, checks.check_autocast, checks.check_checkpoint,
     checks.check_without_gradients, checks.check_absent_and_partial_gradients, checks.check_layouts,
     pytest.param(checks.check_operator_layouts, marks=pytest.mark.slow)],
    ids=lambda check: check.__name__,
)  # fmt: skip
def test_operator(check):
    check("triton", DEVICE)


@pytest.mark.parametrize("statistics", [False, True])
def test_a_second_derivative_raises(statistics):
    q, k, v = make_qkv(1, 2, 6, 7, 16, device=DEVICE, requires_grad=True)
    result = ea.attention(q, k, v, return_entropy=statistics, impl="triton")
    total = result.out.sum() + (result.entropy.sum() if statistics else 0.0)
    (first,) = torch.autograd.grad(total, q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative; impl='reference' has"):
        first.sum().backward()


@pytest.mark.parametrize("key_rows", [None, (3, 8)], ids=str)
def test_tables_of_keys(key_rows):
    q, k, v = make_qkv(1, 2, 13, 20, 16, device=DEVICE, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    tables = {name: torch.randn(1, 2, 1, 20, generator=generator).to(DEVICE) for name in ("key_scale", "key_bias")}
    call = AttentionCall(
        q, k, v, return_lse=True, return_entropy=True, map_keys=(2, 7), key_rows=key_rows, **tables
    )  # fmt: skip
    results = operator.run_fused_all(call)[:4], all_results(call)[:4]
    found, expected = (torch.autograd.grad(checks.loss(each), (q, k, v)) for each in results)
    for one, other in zip((*results[0], *found), (*results[1], *expected), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-4)
    torch.library.opcheck(
        operator._attention,
        (q, k, v, None, None, False, True, 2, 7, "triton", *tables.values(), *(key_rows or (0, 0))),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_a_gradient_of_the_mask_is_refused():
    q, k, v = make_qkv(1, 2, 6, 7, 16, device=DEVICE)
    bias = torch.zeros(6, 7, device=DEVICE, requires_grad=True)
    with pytest.raises(ea.Unsupported, match="no gradient of attn_mask"):
        ea.attention(q, k, v, attn_mask=bias, impl="triton")
    ea.attention(q, k, v, attn_mask=bias, return_entropy=True).entropy.sum().backward()  # auto falls back to torch
    assert bias.grad.any()
