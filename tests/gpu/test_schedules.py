"""Schedules that autotuning tries on Hopper and that have never run on a GPU. `make gpu` runs these tests last."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.common.support import call_target
from tests.gpu.candidates import scheduled_candidates, those_that_fit
from tests.support.oracle import make_qkv


@pytest.mark.parametrize("seqlen_k", [333, 384])  # with and without an incomplete block
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("schedule", ["rotated", "specialized", "pingpong"])
def test_every_candidate_with_a_schedule_is_right(schedule, dtype, head_dim, seqlen_k):
    q, k, v = make_qkv(1, 2, 200, seqlen_k, head_dim, dtype=dtype, device="cuda")
    candidates = scheduled_candidates(call_target(q), head_dim, head_dim, dtype, seqlen_k=seqlen_k)
    candidates = [config for config in candidates if config.schedule == schedule]
    if not candidates:
        pytest.skip(f"autotuning has no {schedule} schedule for this call")
    assert those_that_fit(candidates, q, k, v)
