"""Schedules of the forward kernel that have never run on a GPU, against float64. `make gpu` runs these last.

They are in a separate file, so that a schedule that hangs or loses the device does not affect other tests.
"""

from __future__ import annotations

import functools

import pytest
import torch

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import INTERPRETER, call_target, interpreting
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import ForwardConfig
from tests.kernels.calls import DEVICE, check
from tests.support.oracle import make_qkv as make_qkv_on

make_qkv = functools.partial(make_qkv_on, device=DEVICE)


def scheduled(schedule: str) -> ForwardConfig:
    """A configuration with this schedule; on a GPU, its tiles can be divided among groups of warps."""
    block_m, warps = (32, 4) if interpreting() else (128, 4 if schedule == "specialized" else 8)
    return ForwardConfig(block_m, 32 if interpreting() else 64, warps, 2, descriptors=True, schedule=schedule)


@pytest.fixture
def half():
    """The precision of the schedules; skips the test on other GPUs than Hopper."""
    if call_target(torch.empty(0, device=DEVICE)) not in (INTERPRETER, "sm_90"):
        pytest.skip("the schedules are for Hopper")
    return torch.float16


@pytest.mark.parametrize("schedule", ["specialized", "rotated"])
@pytest.mark.parametrize("seqlen_k", [1, 31, 32, 33, 64, 100, 128, 192])
@pytest.mark.parametrize("is_causal", [False, True])
def test_schedules(half, schedule, seqlen_k, is_causal):
    """No, one and several complete blocks, with and without an incomplete one."""
    check(*make_qkv(2, 2, 70, seqlen_k, 64, dtype=half), config=scheduled(schedule), is_causal=is_causal)


@pytest.mark.parametrize("schedule, head_dim", [("specialized", 40), ("rotated", 64)])
@pytest.mark.parametrize("scale", [-0.3, 0.0, torch.tensor([0.1, -0.5])], ids=str)
def test_schedules_with_any_scale(half, schedule, head_dim, scale):
    scale = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale
    check(*make_qkv(2, 2, 70, 128, head_dim, dtype=half), config=scheduled(schedule), scale=scale)


def test_a_rotated_loop_with_a_mask(half):
    mask = torch.rand(70, 128, generator=torch.Generator().manual_seed(0)).to(DEVICE) > 0.5
    check(*make_qkv(2, 2, 70, 128, 64, dtype=half), config=scheduled("rotated"), attn_mask=mask)


def test_requirements_of_the_schedules():
    q, k, v = make_qkv(2, 2, 70, 100, 64)
    for schedule in ("specialized", "rotated"):
        with pytest.raises(ValueError, match=f"schedule='{schedule}': expected a configuration with descriptors"):
            launch.attention_forward(AttentionCall(q, k, v), config=ForwardConfig(32, 32, 4, 1, schedule=schedule))
    for widths in ({"head_dim": 40}, {"head_dim_v": 80}):
        with pytest.raises(ValueError, match="schedule='rotated': expected head dims in one chunk"):
            call = AttentionCall(*make_qkv(2, 2, 70, 100, **{"head_dim": 64} | widths))
            launch.attention_forward(call, config=scheduled("rotated"))
    mask = torch.ones(70, 100, dtype=torch.bool, device=DEVICE)
    with pytest.raises(ValueError, match="schedule='specialized': expected no mask"):
        launch.attention_forward(AttentionCall(q, k, v, mask), config=scheduled("specialized"))
    skewed = q.new_empty(2, 2, 70, 65)[..., :64]  # rows that are not aligned
    with pytest.raises(ValueError, match="query with 16-byte aligned"):
        launch.attention_forward(AttentionCall(skewed, k, v), config=scheduled("specialized"))
