"""The operator with torch's operations."""

from __future__ import annotations

import pytest
import torch

import entropy_attn as ea
from tests.support import operator_checks as checks
from tests.support.oracle import make_qkv

ARGUMENTS = ("sdpa", "cpu")


@pytest.mark.parametrize(
    "check",
    [checks.check_operator, checks.check_frames, checks.check_autocast, checks.check_checkpoint,
     checks.check_without_gradients, checks.check_absent_and_partial_gradients, checks.check_layouts,
     checks.check_operator_layouts],
    ids=lambda check: check.__name__,
)  # fmt: skip
def test_operator(check):
    check(*ARGUMENTS)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.4), torch.tensor([0.0, 0.3, -0.4, 1.0]),
                                   torch.linspace(-1, 1, 8).view(2, 4)], ids=str)  # fmt: skip
@pytest.mark.parametrize("mask", [None, "bool", "added"])
def test_compiled_gradients_equal_eager_ones(mask, scale, grouped):
    q, k, v = make_qkv(2, 4, 13, 17, 16, heads_kv=2 if grouped else 4)
    keep = torch.rand(2, 1, 13, 17, generator=torch.Generator().manual_seed(0)) > 0.3
    keep[0, :, 4] = False
    attn_mask = {None: None, "bool": keep, "added": torch.randn(4, 1, 17, generator=torch.Generator().manual_seed(1))}
    attn_mask = attn_mask[mask]

    def results(*tensors):
        it = iter(tensors)
        options = {"attn_mask": next(it) if mask == "added" else attn_mask, "scale": scale}
        if scale is not None:
            options["scale"] = next(it)
        q, k, v = it
        return checks.loss(ea.attention(q, k, v, enable_gqa=grouped, **options, **checks.OPTIONS, impl="sdpa"))

    leaves = tuple(t for t in (attn_mask if mask == "added" else None, scale, q, k, v) if t is not None)
    torch._dynamo.reset()
    compiled = torch.compile(results, backend="aot_eager", fullgraph=True)
    for a, b in zip(checks.gradients(compiled, leaves), checks.gradients(results, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_compiled_call_checks_new_values_like_an_eager_one():
    q, k, v = make_qkv(1, 2, 5, 5, 16)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="scale: expected None, a number or a tensor"):
        torch.compile(lambda: ea.attention(q, k, v, scale="0.1"), backend="aot_eager", fullgraph=True)()
