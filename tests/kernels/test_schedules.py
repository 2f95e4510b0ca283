"""Schedules of the forward kernel that have never run on a GPU, against float64. `make gpu` runs these last.

They are in a separate file, so that a schedule that hangs or loses the device does not affect other tests.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.support import INTERPRETER, call_target, interpreting
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates
from entropy_attn.kernels.pingpong.configs import feasible_tiles
from tests.kernels.calls import DEVICE, check
from tests.support.oracle import assert_matches_oracle
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


@pytest.fixture
def hopper(half):
    """The precision of the Gluon kernel; skips the test in Triton's interpreter too, which runs no Gluon."""
    if interpreting():
        pytest.skip("Triton's interpreter runs no Gluon")
    return half


def in_turns(head_dim: int, groups: int | None = None) -> ForwardConfig:
    """The candidate of autotuning with so many groups of warps; by default the first."""
    candidates = forward_candidates("sm_90", head_dim, head_dim, torch.float16)
    found = (config for config in candidates if config.schedule == "pingpong")
    return next(config for config in found if groups in (None, config.tiles.groups))


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("seqlen_k", [1, 127, 128, 129, 256, 300, 520])
@pytest.mark.parametrize("is_causal", [False, True])
def test_groups_of_warps_in_turns(hopper, groups, seqlen_k, is_causal):
    """One and several blocks of keys, in rings of four stages, with and without an incomplete one."""
    tensors = make_qkv(1, 2, 200, seqlen_k, 64, dtype=hopper)
    check(*tensors, config=in_turns(64, groups), is_causal=is_causal)


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 40, 48, 72, 80, 96, 112, 128, 160, 256])
def test_groups_of_warps_with_any_head_dim(hopper, head_dim, dtype, groups):
    if groups not in {tiles.groups for tiles in feasible_tiles(head_dim)}:
        pytest.skip("no tiles fit")
    check(*make_qkv(1, 2, 70, 300, head_dim, dtype=dtype), config=in_turns(head_dim, groups))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [-0.3, 0.0, torch.tensor([0.1, -0.5, 0.0, 0.2]), torch.tensor(-0.2)], ids=str)
def test_groups_of_warps_with_any_scale_and_shared_heads(hopper, scale, is_causal):
    q, k, v = make_qkv(2, 4, 70, 300, 80, dtype=hopper)
    scale = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale
    check(q, k[:, :2], v[:, :2], config=in_turns(80), scale=scale, is_causal=is_causal)


def test_groups_of_warps_with_heads_inside_tokens(hopper):
    """Rows of one tensor for query, key and value."""
    packed = torch.cat(make_qkv(2, 2, 150, 150, 40, dtype=hopper), dim=1).transpose(1, 2).contiguous().transpose(1, 2)
    check(*packed.chunk(3, dim=1), config=in_turns(40))


def test_groups_of_warps_without_statistics(hopper):
    q, k, v = make_qkv(1, 2, 70, 300, 64, dtype=hopper)
    actual = launch.attention_forward(AttentionCall(q, k, v), config=in_turns(64))
    assert_matches_oracle(actual, q, k, v)


def test_a_repeated_call_has_the_tensors_of_its_own(hopper):
    """The second launch is by a plan, into whose descriptors the new addresses go."""
    for seed in (0, 1):
        check(*make_qkv(1, 2, 70, 300, 64, dtype=hopper, seed=seed), config=in_turns(64))


def test_large_logits_and_rows_of_nan(hopper):
    q, k, v = make_qkv(1, 2, 70, 300, 64, dtype=hopper)
    check(q * 30, k, v, config=in_turns(64))
    q[0, 0, 3] = float("nan")
    out, lse, entropy = launch.attention_forward(
        AttentionCall(q, k, v, return_lse=True, return_entropy=True), config=in_turns(64)
    )
    for each in (out, lse, entropy):
        assert each[0, 0, 3].isnan().all() and not each[0, 0, :3].isnan().any() and not each[0, 1].isnan().any()


def test_what_groups_of_warps_refuse(half):
    q, k, v = make_qkv(2, 2, 70, 100, 64, dtype=half)
    sound = in_turns(64)

    def refused(message: str, *tensors: torch.Tensor, config: ForwardConfig = sound, **options: object) -> None:
        with pytest.raises(ValueError, match=f"schedule='pingpong': .*{message}"):
            launch.attention_forward(AttentionCall(*(tensors or (q, k, v)), **options), config=config)

    if interpreting():
        refused("the target is interpreter")
        return
    refused("a mask would be fetched", attn_mask=torch.ones(70, 100, dtype=torch.bool, device=DEVICE))
    refused("the query is float32", *(t.float() for t in (q, k, v)))
    refused("head dims differ: 64 of query and 32 of value", q, k, v[..., :32].contiguous())
    refused("query needs a unit last stride", q.new_empty(2, 2, 70, 65)[..., :64], k, v)
    refused("value needs a unit last stride", q, k, v.mT.contiguous().mT)
    refused("key needs .* at least one row", q, k[:, :, :0], v[:, :, :0])
    refused("block_n: expected 64 or 128", config=dataclasses.replace(sound, block_n=48))
    refused("needs .* registers", config=dataclasses.replace(sound, block_n=256))


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
