"""The Gluon kernel, compiled for Hopper with the tiles of the search: no spills, and nothing that ptxas serializes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates, forward_config
from entropy_attn.kernels.pingpong.configs import REGISTER_FILE, THREADS, Tiles, feasible_tiles

from .aot import Code, assert_clean, compile_call
from .test_forward import HEADS, make_call

HEAD_DIMS = (40, 64, 72, 80, 96, 128, 160)
# Instructions of the loop of flash-attn-4 4.0.0b36, compiled for sm_90, for as many scores a thread as a block of 128
# keys has here: as it is, and with the row's entropy added to its softmax.
FLASH_ATTENTION_4 = {64: (428, 494), 128: (457, 525)}


def configuration(head_dim: int, groups: int) -> ForwardConfig:
    """The candidate of autotuning with so many groups of warps that compute."""
    candidates = forward_candidates("sm_90", head_dim, head_dim, torch.float16, seqlen_k=1024)
    return next(c for c in candidates if c.schedule == "pingpong" and c.tiles.groups == groups)


def compiled(head_dim: int, groups: int, **options: Any) -> tuple[Code, Tiles]:
    config = configuration(head_dim, groups)
    return compile_call(make_call("sm_90", head_dim, **options), config), config.tiles


def assert_overlapped(code: Code, tiles: Tiles) -> None:
    """Exponentials run while products do, in a loop with one exponential a score, and all registers are dealt out."""
    assert_clean(code, "sm_90")
    assert not code.warnings  # C7510 to C7514: products are serialized
    assert code.loop["HGMMA"] > 0 and code.loop["LDG"] == code.loop["STG"] == 0
    scores = 64 * tiles.block_n // THREADS
    assert scores <= code.loop["MUFU.EX2"] <= scores + 8, "the exponential of a score is computed more than once"
    assert code.exp_in_flight >= 0.9 * code.loop["MUFU.EX2"], f"{code.exp_in_flight} run beside products"
    assert code.program["USETMAXREG"] > 0
    assert code.registers * THREADS * (tiles.groups + 1) <= REGISTER_FILE, "the kernel could not start"


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_two_groups_of_warps(head_dim):
    """With entropy and without: it makes the loop at most a fifth longer; the plain schedule's is longer still."""
    code, tiles = compiled(head_dim, 2)
    assert_overlapped(code, tiles)
    without, _ = compiled(head_dim, 2, entropy=False)
    assert_overlapped(without, tiles)
    assert code.loop.total() <= 1.20 * without.loop.total()
    if head_dim in FLASH_ATTENTION_4:
        theirs, with_entropy = FLASH_ATTENTION_4[head_dim]
        assert without.loop.total() <= 1.02 * theirs and code.loop.total() <= 1.02 * with_entropy
    plain = forward_config("sm_90", head_dim, head_dim, torch.float16)
    assert plain.block_m * plain.block_n / (32 * plain.num_warps) == 64 * tiles.block_n / THREADS  # scores of a thread
    assert code.loop.total() < compile_call(make_call("sm_90", head_dim), plain).loop.total()


@pytest.mark.parametrize("head_dim", [d for d in HEAD_DIMS if len(feasible_tiles(d)) > 1])
def test_three_groups_of_warps(head_dim):
    assert_overlapped(*compiled(head_dim, 3))


@pytest.mark.parametrize("head_dim, groups", [(64, 3), (80, 2), (128, 2), (160, 2)])
def test_causal_with_a_scale_from_a_tensor_and_heads_inside_tokens(head_dim, groups):
    options = {"is_causal": True, "scale": torch.ones(HEADS), "layout": "bshd", "dtype": torch.bfloat16}
    assert_overlapped(*compiled(head_dim, groups, **options))


def test_a_scale_of_each_sample_and_head():
    assert_overlapped(*compiled(64, 2, scale=torch.ones(2, HEADS)))


@pytest.mark.parametrize("head_dim", [16, 32, 256])
def test_the_narrowest_and_the_widest_heads(head_dim):
    for tiles in feasible_tiles(head_dim):
        assert_overlapped(*compiled(head_dim, tiles.groups))


def test_a_negative_scale():
    assert_overlapped(*compiled(64, 2, scale=-0.1))
