"""A chunk of the keys by itself, as in a ring: its statistics merge, and its backward pass takes the whole row's."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.backward.launch import attention_backward
from entropy_attn.kernels.common.support import backward_unsupported, call_target
from entropy_attn.kernels.forward.launch import attention_forward
from entropy_attn.ops.split_keys import map_of_keys
from tests.kernels.calls import DEVICE, DTYPES, random_mask
from tests.support.chunks import calls_of_chunks, merged_forward, summed_backward
from tests.support.oracle import assert_matches_oracle, make_qkv
from tests.support.oracle_gradients import GRADS, assert_gradients_match, random_gradients

LENGTHS = (33, 1, 19)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_forward(dtype, masked):
    q, k, v = make_qkv(1, 2, 40, sum(LENGTHS), 16, dtype=dtype, device=DEVICE)
    options = {"attn_mask": random_mask("bool", (1, 2, 40, sum(LENGTHS)), dtype)} if masked else {}
    results = merged_forward(calls_of_chunks(q, k, v, LENGTHS, **options), attention_forward)
    found = map_of_keys(q, k[:, :, 5:21], results[1], mask=None) if not masked else None
    text = {} if masked else {"map_keys": (5, 21)}
    assert_matches_oracle((*results, found), q, k, v, **options, **text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_backward(dtype, masked):
    q, k, v = make_qkv(1, 2, 40, sum(LENGTHS), 16, dtype=dtype, device=DEVICE)
    refused = backward_unsupported(call_target(q), 16, 16, dtype, has_mask=masked, has_map=False)
    if refused:
        pytest.skip(refused[0])
    options = {"attn_mask": random_mask("bool", (1, 2, 40, sum(LENGTHS)), dtype)} if masked else {}
    grads = random_gradients(q, k, v, (0, 0), GRADS[:3])
    calls = calls_of_chunks(q, k, v, LENGTHS, **options)
    actual = summed_backward(calls, merged_forward(calls, attention_forward), attention_backward, **grads)
    assert_gradients_match((*actual, None), q, k, v, grads, **options)


def test_a_chunk_needs_the_whole_rows_results():
    """What the test above would miss if the kernel computed the chunk's own results again."""
    q, k, v = make_qkv(1, 1, 20, 40, 16, device=DEVICE)
    calls = calls_of_chunks(q, k, v, (20, 20))
    grads = random_gradients(q, k, v, (0, 0), GRADS[:1])
    whole = summed_backward(calls, merged_forward(calls, attention_forward), attention_backward, **grads)
    own = [
        attention_backward(call, *attention_forward(call)[:3], **grads, needs=(True,) * 3 + (False,))[0]
        for call in calls
    ]
    assert not torch.allclose(whole[0], sum(own), rtol=1e-2, atol=1e-2)
