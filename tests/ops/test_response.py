"""The response of the entropy and the spread of the logits, against probabilities that are written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from entropy_attn.ops import response as module
from entropy_attn.ops.response import entropy_response, logit_variance, response_and_variance
from tests.support.interpreter import needs_interpreter


def operands(std: float, *, tokens: int = 48, heads: int = 4, kv_heads: int = 4, rows: int = 20, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(2, heads, rows, 16, generator=g), dim=-1) * std * 4
    key, value = (torch.randn(2, kv_heads, tokens, 16, generator=g) for _ in range(2))
    return query.to(dtype), key.to(dtype), value.to(dtype)


def oracle(query, key, mask=None, scale=None):
    """(response, variance of the logits over the keys that are left), float64."""
    query, key = query.double(), key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scale = scale.double()[..., None, None] if isinstance(scale, torch.Tensor) and scale.dim() else scale
    scores = query @ key.mT * scale
    added = torch.zeros(scores.shape[-1:], dtype=torch.float64) if mask is None else mask
    if added.dtype == torch.bool:
        added = torch.zeros_like(added, dtype=torch.float64).masked_fill(~added, -math.inf)
    logits = scores + added.double()
    p = logits.softmax(-1)
    finite = logits.masked_fill(logits < -1e3, 0.0)
    covariance = (p * finite * scores).sum(-1) - (p * finite).sum(-1) * (p * scores).sum(-1)
    left = (logits > -1e3).double()
    mean = (left * finite).sum(-1, keepdim=True) / left.sum(-1, keepdim=True)
    return covariance, (left * (finite - mean).square()).sum(-1) / left.sum(-1)


def masks():
    g = torch.Generator().manual_seed(1)
    keys = torch.rand(2, 1, 1, 48, generator=g) > 0.3
    rows = torch.rand(2, 1, 20, 48, generator=g) > 0.3
    bias = torch.randn(4, 20, 48, generator=g)
    padding = torch.zeros(2, 1, 1, 48).masked_fill(~keys, -1e4) + torch.randn(48, generator=g)
    return {"none": None, "keys": keys, "one row": keys[0, 0, 0], "rows": rows, "bias": bias, "padding": padding}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("std", [0.1, 0.45, 1.8, 4.0, 14.0, 60.0])
def test_both_are_those_of_the_logits(std: float, dtype: torch.dtype):
    query, key, value = operands(std, dtype=dtype)
    response, variance = response_and_variance(query, key, value).double().unbind(-1)
    wanted, spread = oracle(query, key)
    assert (response.mean() - wanted.mean()).abs() < 1e-3 * wanted.mean()
    assert (response - wanted).abs().max() < 0.02 * wanted.mean()  # of single rows, in halves of the step's error
    torch.testing.assert_close(variance, spread, rtol=1e-4, atol=0.0)


def test_the_error_falls_with_the_square_of_the_step():
    query, key, value = operands(1.8, dtype=torch.float64)
    wanted = oracle(query, key)[0]
    errors = [(entropy_response(query, key, value, step=step) - wanted).abs().max() for step in (0.2, 0.1, 0.05)]
    assert errors[0] > 3.5 * errors[1] > 3.5**2 * errors[2]


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("scale", [None, 0.7, torch.tensor([0.1, 0.2, 0.4, 0.8]), torch.tensor([[0.2], [0.6]])],
                         ids=["default", "number", "heads", "samples"])  # fmt: skip
def test_masks_scales_and_grouped_heads(name: str, scale, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SCORES", 8 * 48 * 3)  # several blocks of rows
    mask = masks()[name]
    query, key, value = operands(1.5, kv_heads=2)
    wanted, spread = oracle(query, key, mask, scale)
    options = {"attn_mask": mask, "scale": scale}
    response = entropy_response(query, key, value, enable_gqa=True, **options).double()
    torch.testing.assert_close(response, wanted, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(logit_variance(query, key, **options).double(), spread, rtol=1e-4, atol=1e-5)


def test_causal():
    query, key, value = operands(1.5, tokens=20)
    mask = torch.ones(20, 20, dtype=torch.bool).tril()
    wanted, spread = oracle(query, key, mask)
    found = response_and_variance(query, key, value, is_causal=True).double()
    torch.testing.assert_close(found[..., 0], wanted, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(found[..., 1], spread, rtol=1e-4, atol=1e-5)


def test_a_row_without_keys_has_neither():
    query, key, value = operands(1.0)
    mask = torch.ones(20, 48, dtype=torch.bool)
    mask[3] = False
    found = response_and_variance(query, key, value, attn_mask=mask)
    assert found.isfinite().all() and (found[:, :, 3] == 0).all() and (found[:, :, 4] > 0).all()
    found = response_and_variance(query, key, value, attn_mask=torch.zeros(48, dtype=torch.bool))
    assert (found == 0).all()


def test_a_mean_of_the_logits_far_from_zero_costs_no_digits():
    """A key that all keys share moves every logit alike, and neither number."""
    query, key, value = operands(1.0)
    shifted = key + 50 * F.normalize(torch.ones(16), dim=0)
    wanted, spread = oracle(query, shifted)
    found = response_and_variance(query, shifted, value).double()
    torch.testing.assert_close(found[..., 0], wanted, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(found[..., 1], spread, rtol=1e-3, atol=1e-4)


def test_under_autocast_the_spread_stays_float32():
    query, key, _ = operands(1.0)
    plain = logit_variance(query, key)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logit_variance(query, key), plain)


def test_no_graph_is_kept():
    query, key, value = operands(1.0)
    assert not response_and_variance(query.requires_grad_(), key, value).requires_grad


@needs_interpreter
def test_by_the_kernels():
    query, key, value = operands(1.8, tokens=32, rows=16)
    wanted = oracle(query, key)[0]
    found = entropy_response(query, key, value, impl="triton").double()
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=5e-3)
