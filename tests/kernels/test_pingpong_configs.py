"""The search for tiles of the Gluon kernel, by a model of registers and shared memory; no GPU is needed."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.common.head_dims import MAX_HEAD_DIM, MIN_HEAD_DIM, in_chunks
from entropy_attn.kernels.common.targets import SHARED_MEMORY
from entropy_attn.kernels.forward.configs import forward_candidates
from entropy_attn.kernels.pingpong import launch
from entropy_attn.kernels.pingpong.configs import (
    BLOCKS_N,
    GROUPS,
    PRODUCER_REGISTERS,
    REGISTER_FILE,
    STAGES,
    THREADS,
    Tiles,
    feasible_tiles,
    lacking,
    registers_needed,
    shared_bytes,
    unsupported_tiles,
)

HEAD_DIMS = range(MIN_HEAD_DIM, MAX_HEAD_DIM + 1, 8)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim_has_tiles_that_fit(head_dim):
    found = feasible_tiles(head_dim)
    assert found
    for tiles in found:
        assert registers_needed(tiles, head_dim) <= tiles.consumer_registers
        assert shared_bytes(tiles, head_dim) <= SHARED_MEMORY["sm_90"]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_wgmma_divides_the_tiles(head_dim):
    """It multiplies 64 rows by 16 columns at a time, and gives a multiple of 8 columns, at most 256."""
    chunks = in_chunks(head_dim).chunks
    assert all(chunk.width % 16 == 0 and chunk.width <= 256 for chunk in chunks)
    if head_dim <= 160:
        assert sum(chunk.width for chunk in chunks) - head_dim < 16
    for tiles in feasible_tiles(head_dim):
        assert tiles.block_n % 16 == 0 and tiles.block_n <= 256


def test_the_search_finds_the_widest_block_for_each_number_of_groups():
    """Against all combinations, by hand."""
    for head_dim in HEAD_DIMS:
        every = [Tiles(g, n, s) for g in GROUPS for n in BLOCKS_N for s in STAGES]
        fitting = [tiles for tiles in every if not lacking(tiles, head_dim)]
        for groups in GROUPS:
            widest = max((t for t in fitting if t.groups == groups), key=lambda t: t[1:], default=None)
            assert next((t for t in feasible_tiles(head_dim) if t.groups == groups), None) == widest
        blocks = [tiles.block_n for tiles in feasible_tiles(head_dim)]
        assert blocks == sorted(blocks, reverse=True)


@pytest.mark.parametrize("groups", GROUPS)
def test_the_registers_of_a_multiprocessor_are_dealt_out(groups):
    """The producer is one warp, for which setmaxnreg takes a whole group."""
    tiles = Tiles(groups, 64, 2)
    for each in (tiles.consumer_registers, tiles.max_registers):
        assert each % 8 == 0 and PRODUCER_REGISTERS < each <= 256
    dealt = THREADS * (groups * tiles.consumer_registers + PRODUCER_REGISTERS)
    assert REGISTER_FILE - 8 * THREADS * groups < dealt <= REGISTER_FILE
    assert THREADS * (groups + 1) * tiles.max_registers <= REGISTER_FILE


# Compiled with Triton 3.7.1, two stages, entropy on: bytes that spilled.
SPILLED = {
    (40, 3, 128): 32, (40, 2, 256): 192, (64, 2, 256): 576, (80, 3, 128): 192, (96, 3, 128): 640, (112, 3, 128): 1232,
    (128, 3, 128): 1776, (160, 3, 64): 24, (192, 3, 64): 640,
}  # fmt: skip
CLEAN = [
    (64, 3, 128),
    (64, 2, 128),
    (80, 2, 128),
    (128, 2, 128),
    (128, 3, 64),
    (160, 2, 128),
    (192, 2, 64),
    (256, 2, 64),
]


@pytest.mark.parametrize("head_dim, groups, block_n", [*SPILLED, *CLEAN])
def test_the_model_of_registers_agrees_with_the_compiler(head_dim, groups, block_n):
    lacks = any("registers" in lack for lack in lacking(Tiles(groups, block_n, 2), head_dim))
    assert lacks == ((head_dim, groups, block_n) in SPILLED)


def test_shared_memory_is_a_limit_too():
    assert lacking(Tiles(2, 128, 2), 192)[-1] == "246784 bytes of shared memory of 232448"


@pytest.mark.parametrize("head_dim", [40, 128, 256])
def test_autotuning_has_these_tiles(head_dim):
    def found(target: str, head_dim_v: int = head_dim, **options: bool) -> list[Tiles]:
        candidates = forward_candidates(target, head_dim, head_dim_v, torch.bfloat16, **options)
        return [config.tiles for config in candidates if config.schedule == "pingpong"]

    assert found("sm_90") == feasible_tiles(head_dim)
    for none in (found("sm_100"), found("sm_80"), found("sm_90", 64), found("sm_90", has_mask=True)):
        assert none == []


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"block_m": 96}, "block_m: expected 128 or 192, got 96"),
        ({"tiles": Tiles(2, 48, 2)}, "block_n: expected 64 or 128 or 256, got 48"),
        ({"tiles": Tiles(2, 128, 1)}, "num_stages: expected 2 or 3 or 4, got 1"),
        ({"num_warps": 8}, "num_warps: expected 4, got 8"),
        ({"max_registers": None}, "max_registers: expected 168, got None"),
        ({"tiles": Tiles(2, 256, 2)}, "head_dim 64 with Tiles(groups=2, block_n=256, stages=2) needs 256 registers"),
    ],
)
def test_tiles_that_are_refused(changed, message):
    sound = {"tiles": Tiles(2, 128, 2), "head_dim": 64, "block_m": 128, "num_warps": 4, "max_registers": 168}
    assert unsupported_tiles(**sound) == []
    (reason,) = unsupported_tiles(**sound | changed)
    assert reason.startswith(message)


def test_a_triton_without_what_it_needs_is_refused_by_name(monkeypatch):
    assert launch.missing_in_triton() == ()
    needed = {"triton.language": ("jit_of_tomorrow", "dot"), "triton.no_module": ("x",)}
    monkeypatch.setattr(launch, "NEEDED", needed)
    (reason,) = launch.missing_in_triton.__wrapped__()
    assert "has no triton.language.jit_of_tomorrow, triton.no_module: use 3.6 or later" in reason
