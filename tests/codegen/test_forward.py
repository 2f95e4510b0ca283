"""The forward kernel's shipped configurations, compiled for their GPUs: no spills, no lost pipeline or matrix unit."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.targets import TARGETS
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates, forward_config
from entropy_attn.kernels.forward.launch import ForwardCall

from .aot import Code, assert_clean, compile_call
from .cases import FAMILY, PARTLY_FILLED, table_cases

HEADS = 8
DESCRIPTOR_TARGETS = ("sm_90", "sm_100", "sm_120")


def configuration(target: str, head_dim: int, **options: Any) -> ForwardConfig:
    return forward_config(target, head_dim, head_dim, options.pop("dtype", torch.float16), **options)


TABLE = table_cases(configuration, TARGETS, PARTLY_FILLED)
SHORT_KEYS = table_cases(functools.partial(configuration, seqlen_k=77), DESCRIPTOR_TARGETS, PARTLY_FILLED)
MASKED = table_cases(functools.partial(configuration, has_mask=True), TARGETS, PARTLY_FILLED)
FLOAT32 = table_cases(functools.partial(configuration, dtype=torch.float32))


def make_call(
    target: str,
    head_dim: int,
    *,
    dtype: torch.dtype = torch.float16,
    seqlen_k: int = 1000,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
    entropy: bool = True,
    scale: float | torch.Tensor | None = None,
    layout: str = "bhsd",
) -> ForwardCall:
    """A call as the launcher makes it. Its lengths are no multiples of 16, so nothing is specialized on them."""

    def tensor(n: int) -> torch.Tensor:
        if layout == "bhsd":
            return torch.empty(2, HEADS, n, head_dim, dtype=dtype)
        if layout == "bshd":
            return torch.empty(2, n, HEADS, head_dim, dtype=dtype).transpose(1, 2)
        return torch.empty(2, HEADS, head_dim, n, dtype=dtype).mT

    q, k, v = tensor(1000), tensor(seqlen_k), tensor(seqlen_k)
    stats = torch.empty(2, HEADS, 1000)
    out = torch.empty(2, HEADS, 1000, head_dim, dtype=dtype)
    lse = stats if entropy else None
    return ForwardCall(AttentionCall(q, k, v, mask, is_causal, scale), out, lse, lse, target)


def assert_fast(code: Code, target: str, config: ForwardConfig) -> None:
    """More requirements for kernels in half precision without a mask."""
    assert_clean(code, target)
    assert code.matrix_instructions > 0
    scores = config.block_m * config.block_n // ((64 if target == "gfx942" else 32) * config.num_warps)
    if target == "gfx942":
        assert scores <= sum(n for op, n in code.loop.items() if op.startswith("v_exp_f32")) <= scores + 8
        return
    assert not code.warnings  # for example that wgmma is serialized
    assert code.loop["LDG"] == 0, "the loop waits for loads: it is not pipelined"
    if target == "sm_90":
        assert code.loop["HGMMA"] > 0
    if target == "sm_100":
        assert code.loop["UTCHMMA"] > 0
    assert scores <= code.loop["MUFU.EX2"] <= scores + 8, "the exponential of a score is computed more than once"
    if scores >= 32:
        assert code.registers >= 96, "the assembler used very few registers"


def compiled(target: str, head_dim: int, **options: Any) -> tuple[Code, ForwardConfig]:
    call = make_call(target, head_dim, **options)
    return compile_call(call, call.table_config()), call.table_config()


@pytest.mark.parametrize("target, head_dim", TABLE)
def test_table(target, head_dim):
    """With all statistics and without; the entropy makes the loop at most a fifth longer."""
    code, config = compiled(target, head_dim)
    assert config.descriptors == (target in DESCRIPTOR_TARGETS)
    assert_fast(code, target, config)
    without, _ = compiled(target, head_dim, entropy=False)
    assert_fast(without, target, config)
    assert code.loop.total() <= 1.20 * without.loop.total()


ROW_SUMS = [(target, 64) for target in ("sm_80", "sm_89", "sm_90", "sm_120")] + [("sm_80", 128), ("sm_90", 128)]


@pytest.mark.parametrize("target, head_dim", ROW_SUMS)
def test_lanes_exchange_only_the_maximum(target, head_dim):
    """With the sums by lane: two exchanges between four lanes for each of a thread's two rows, whatever is summed."""
    call = make_call(target, head_dim)
    config = call.table_config()
    assert config.by_lane and config.block_m == 16 * config.num_warps
    together = compile_call(call, replace(config, by_lane=False))
    code = compile_call(call, config)
    for kernel in (code, compile_call(make_call(target, head_dim, entropy=False), config)):
        assert kernel.loop["SHFL"] == 4
    assert together.loop["SHFL"] == 12
    assert code.loop.total() <= together.loop.total() - 12


@pytest.mark.parametrize("head_dim", [64, 128])
def test_lanes_of_amd_sum_two_keys_at_a_time(head_dim):
    call = make_call("gfx942", head_dim)
    config = call.table_config()
    together = compile_call(call, replace(config, by_lane=False))
    assert compile_call(call, config).loop.total() < together.loop.total()


def candidate(schedule: str, head_dim: int, entropy: bool, block_n: int = 128) -> tuple[Code, ForwardConfig]:
    """A candidate of autotuning on Hopper, for keys that fill their blocks."""
    call = make_call("sm_90", head_dim, entropy=entropy, seqlen_k=1024)
    candidates = forward_candidates(**call.options())
    config = next(c for c in candidates if c.schedule == schedule and c.block_n == block_n)
    return compile_call(call, config), config


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("head_dim", FAMILY)
def test_specialized_warps_shorten_the_loop_of_the_others(head_dim, entropy):
    code, config = candidate("specialized", head_dim, entropy)
    assert_clean(code, "sm_90")
    assert not code.warnings
    assert code.program["USETMAXREG"] > 0
    groups = 3  # one fetches, two share the tile; num_warps is the number of warps of one group
    assert code.registers * 32 * groups * config.num_warps <= 65_536, "too many registers: the kernel could not start"
    plain, _ = candidate("plain", head_dim, entropy)
    assert code.loop["MUFU.EX2"] == plain.loop["MUFU.EX2"]
    assert code.loop.total() < 0.97 * plain.loop.total()


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("head_dim, block_n", [(64, 128), (64, 64), (128, 64)])
def test_a_rotated_loop_overlaps_exponentials_with_products(head_dim, block_n, entropy):
    code, config = candidate("rotated", head_dim, entropy, block_n)
    assert_fast(code, "sm_90", config)
    assert code.exp_in_flight >= 0.75 * code.loop["MUFU.EX2"]
    plain, _ = candidate("plain", head_dim, entropy)
    assert plain.exp_in_flight == 0


@pytest.mark.parametrize("target, head_dim", SHORT_KEYS)
def test_short_keys_are_loaded_by_pointer(target, head_dim):
    code, config = compiled(target, head_dim, seqlen_k=77)
    assert not config.descriptors
    assert_fast(code, target, config)


@pytest.mark.parametrize("target, head_dim", TABLE)
def test_causal_with_a_scale_from_a_tensor_and_heads_inside_tokens(target, head_dim):
    code, config = compiled(target, head_dim, is_causal=True, scale=torch.ones(HEADS), layout="bshd")
    assert_fast(code, target, config)


@pytest.mark.parametrize("target", TARGETS)
def test_a_scale_of_each_sample_and_head(target):
    code, config = compiled(target, 64, scale=torch.ones(2, HEADS))
    assert_fast(code, target, config)


@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("target, head_dim", MASKED)
def test_masks(target, head_dim, kind):
    shape, dtype = ((2, 1, 1000, 1000), torch.bool) if kind == "bool" else ((1, HEADS, 1000, 1000), torch.float16)
    code, _ = compiled(target, head_dim, mask=torch.empty(shape, dtype=dtype))
    assert_clean(code, target)
    assert code.matrix_instructions > 0


@pytest.mark.parametrize("target", TARGETS)
def test_a_mask_of_keys(target):
    code, _ = compiled(target, 64, mask=torch.empty(2, 1, 1, 1000, dtype=torch.bool))
    assert_clean(code, target)
    assert code.matrix_instructions > 0


@pytest.mark.parametrize("target, head_dim", FLOAT32)
def test_float32(target, head_dim):
    """Exact products use matrix instructions on AMD and FMA on NVIDIA."""
    code, _ = compiled(target, head_dim, dtype=torch.float32)
    assert_clean(code, target)
    assert code.matrix_instructions > 0 if target == "gfx942" else code.loop["FFMA"] + 2 * code.loop["FFMA2"] > 256


@pytest.mark.parametrize("target", TARGETS)
def test_a_negative_scale_and_strides_that_descriptors_cannot_have(target):
    code, config = compiled(target, 64, scale=-0.1, layout="bhds")
    assert not config.descriptors
    assert_clean(code, target)


def test_head_dim_40_keeps_its_pipeline():
    """Stride 40 is no multiple of 16, which by itself would rule out asynchronous copies."""
    assert compiled("sm_80", 40)[0].loop["LDGSTS"] > 0
