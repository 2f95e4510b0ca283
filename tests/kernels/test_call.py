"""The properties that a call derives from its arguments."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from entropy_attn.kernels.common.call import AttentionCall


def make_call(heads_k: int = 4, heads_v: int = 4, **options) -> AttentionCall:
    query, key, value = torch.zeros(2, 4, 5, 16), torch.zeros(2, heads_k, 7, 16), torch.zeros(2, heads_v, 7, 16)
    return AttentionCall(query, key, value, **options)


@pytest.mark.parametrize("shape", [(), (7,), (5, 7), (4, 5, 7), (2, 1, 5, 7)], ids=str)
def test_the_mask_has_four_dimensions_and_is_one_view(shape):
    attn_mask = torch.randn(shape)
    call = make_call(attn_mask=attn_mask)
    assert call.mask.shape == (1,) * (4 - len(shape)) + shape
    assert call.mask.data_ptr() == attn_mask.data_ptr() and call.attn_mask is attn_mask
    assert call.mask is call.mask  # a launch by plan finds its arguments by identity
    other = dataclasses.replace(call, attn_mask=torch.ones(7))
    assert other.mask.shape == (1, 1, 1, 7)
    assert make_call().mask is None


def test_statistics_are_whatever_is_requested_besides_the_output():
    assert not make_call().statistics
    for options in ({"return_lse": True}, {"return_entropy": True}, {"map_keys": (0, 1)}):
        assert make_call(**options).statistics


def test_grouped_heads_of_key_or_value():
    assert not make_call().grouped
    assert make_call(2, 4).grouped and make_call(4, 2).grouped and make_call(1, 2).grouped


@pytest.mark.parametrize("name", ["query", "key", "value", "attn_mask", "scale"])
def test_a_gradient_of_any_tensor(name):
    call = make_call(attn_mask=torch.zeros(5, 7), scale=torch.tensor(0.3))
    assert not call.needs_gradient
    getattr(call, name).requires_grad_()
    assert call.needs_gradient
    with torch.no_grad():
        assert not call.needs_gradient


def test_an_unknown_attribute_is_an_error():
    with pytest.raises(AttributeError, match="'AttentionCall' object has no attribute 'masks'"):
        _ = make_call().masks
