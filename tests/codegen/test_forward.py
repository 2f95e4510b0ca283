"""The forward kernel's shipped configurations, compiled for their GPUs: no spills, no lost pipeline or matrix unit."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from entropy_attn.kernels.configs import TARGETS, ForwardConfig
from entropy_attn.kernels.launch import ForwardCall

from .aot import Code, assert_clean, compile_call

HEADS = 8
# The head dims of the Stable Diffusion family and the edges of the table's rows.
HEAD_DIMS = (16, 40, 64, 80, 96, 112, 128, 160, 192, 224, 256)
DESCRIPTOR_TARGETS = ("sm_90", "sm_100", "sm_120")


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
    """A call as the launcher makes it. Its lengths have no factor 16, so the compiler knows nothing of them."""

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
    return ForwardCall(q, k, v, out, lse, lse, mask, is_causal, scale, target)


@functools.cache
def plain(target: str, head_dim: int, entropy: bool = True) -> tuple[Code, ForwardConfig]:
    call = make_call(target, head_dim, entropy=entropy)
    return compile_call(call, call.table_config()), call.table_config()


def assert_fast(code: Code, target: str, config: ForwardConfig) -> None:
    """What a kernel in half precision without a mask has to show besides."""
    assert_clean(code, target)
    assert code.matrix_instructions > 0
    scores = config.block_m * config.block_n // ((64 if target == "gfx942" else 32) * config.num_warps)
    if target == "gfx942":
        assert scores <= sum(n for op, n in code.loop.items() if op.startswith("v_exp_f32")) <= scores + 8
        return
    assert not code.warnings  # wgmma serialised, and the like
    assert code.loop["LDG"] == 0, "loads wait in the loop: the pipeline is lost"
    if target == "sm_90":
        assert code.loop["HGMMA"] > 0
    if target == "sm_100":
        assert code.loop["UTCHMMA"] > 0
    assert scores <= code.loop["MUFU.EX2"] <= scores + 8, "a score's exponential is taken more than once"
    if scores >= 32:
        assert code.registers >= 96, "the assembler collapsed to few registers"


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("target", TARGETS)
def test_table(target, head_dim):
    code, config = plain(target, head_dim)
    assert config.descriptors == (target in DESCRIPTOR_TARGETS)
    assert_fast(code, target, config)


@pytest.mark.parametrize("head_dim", (40, 64, 96, 112, 128, 160, 192, 256))
@pytest.mark.parametrize("target", TARGETS)
def test_entropy_costs_at_most_a_fifth_of_the_loop(target, head_dim):
    without, config = plain(target, head_dim, entropy=False)
    assert_fast(without, target, config)
    assert plain(target, head_dim)[0].loop.total() <= 1.20 * without.loop.total()


@pytest.mark.parametrize("head_dim", (40, 64, 96, 128, 160, 192, 224, 256))
@pytest.mark.parametrize("target", DESCRIPTOR_TARGETS)
def test_short_keys_go_by_pointer(target, head_dim):
    call = make_call(target, head_dim, seqlen_k=77)
    assert not call.table_config().descriptors
    assert_fast(compile_call(call, call.table_config()), target, call.table_config())


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("head_dim", (40, 96, 112, 128, 160, 192, 256))
@pytest.mark.parametrize("target", TARGETS)
def test_causal(target, head_dim, entropy):
    call = make_call(target, head_dim, is_causal=True, entropy=entropy)
    assert_fast(compile_call(call, call.table_config()), target, call.table_config())


@pytest.mark.parametrize("head_dim", (64, 112, 160, 256))
@pytest.mark.parametrize("target", TARGETS)
def test_scale_from_a_tensor_and_heads_inside_tokens(target, head_dim):
    call = make_call(target, head_dim, scale=torch.ones(HEADS), layout="bshd")
    assert_fast(compile_call(call, call.table_config()), target, call.table_config())


@pytest.mark.parametrize("target", TARGETS)
def test_negative_scale(target):
    call = make_call(target, 40, scale=-0.1)
    assert_fast(compile_call(call, call.table_config()), target, call.table_config())


@pytest.mark.parametrize(
    "kind, head_dim",
    [*itertools.product(["bool"], (64, 96, 112, 128, 160, 192, 224, 256)), ("added", 64), ("added", 160),
     ("added", 224), ("keys", 64)],
)  # fmt: skip
@pytest.mark.parametrize("target", TARGETS)
def test_masks(target, kind, head_dim):
    masks = {
        "bool": torch.empty(2, 1, 1000, 1000, dtype=torch.bool),
        "added": torch.empty(1, HEADS, 1000, 1000, dtype=torch.float16),
        "keys": torch.empty(2, 1, 1, 1000, dtype=torch.bool),
    }
    call = make_call(target, head_dim, mask=masks[kind])
    code = compile_call(call, call.table_config())
    assert_clean(code, target)
    assert code.matrix_instructions > 0


@pytest.mark.parametrize("head_dim", (64, 128, 256))
@pytest.mark.parametrize("target", TARGETS)
def test_float32(target, head_dim):
    """Exact products: matrix instructions on AMD, FMA on NVIDIA."""
    call = make_call(target, head_dim, dtype=torch.float32)
    code = compile_call(call, call.table_config())
    assert_clean(code, target)
    assert code.matrix_instructions > 0 if target == "gfx942" else code.loop["FFMA"] + 2 * code.loop["FFMA2"] > 256


@pytest.mark.parametrize("target", TARGETS)
def test_strides_that_no_descriptor_takes(target):
    call = make_call(target, 64, layout="bhds")
    assert not call.table_config().descriptors
    assert_clean(compile_call(call, call.table_config()), target)


def test_head_dim_40_keeps_its_pipeline():
    """Stride 40 is no multiple of 16, which alone would cost the asynchronous copies."""
    assert plain("sm_80", 40)[0].loop["LDGSTS"] > 0
