"""A chunk of the keys on an emulated card, in bfloat16, which Triton's interpreter cannot multiply."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.backward.launch import attention_backward
from entropy_attn.kernels.forward.launch import attention_forward
from tests.support.chunks import calls_of_chunks, merged_forward, summed_backward
from tests.support.oracle import assert_matches_oracle, make_qkv
from tests.support.oracle_gradients import GRADS, assert_gradients_match, random_gradients

from .card import emulated


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_chunks_in_bfloat16(target):
    lengths = (150, 37)
    q, k, v = make_qkv(1, 2, 35, sum(lengths), 64, dtype=torch.bfloat16)
    grads = random_gradients(q, k, v, (0, 0), GRADS[:3])
    calls = calls_of_chunks(q, k, v, lengths)
    with emulated(target):
        results = merged_forward(calls, attention_forward)
        actual = summed_backward(calls, results, attention_backward, **grads)
    assert_matches_oracle(results, q, k, v)
    assert_gradients_match((*actual, None), q, k, v, grads)
