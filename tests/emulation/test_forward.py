"""The compiled forward kernels on the emulated card, against float64."""

from __future__ import annotations

import pytest
import torch

import entropy_attn as ea

from ..oracle import assert_matches_oracle, make_qkv
from .card import emulated


@pytest.mark.parametrize("target", ["sm_80"])
def test_a_call_takes_the_whole_way(target):
    q, k, v = make_qkv(1, 2, 70, 133, 64, dtype=torch.float16)
    with emulated(target) as card:
        results = ea.attention(q, k, v, impl="triton", return_lse=True, return_entropy=True)
    assert [one.kernel for one in card.launches] == ["attention_forward_pointers"]
    assert_matches_oracle(tuple(results), q, k, v)
