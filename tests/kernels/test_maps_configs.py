"""The configuration table of the map kernels, which needs neither Triton nor a GPU."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.common.targets import MULTIPROCESSORS, TARGETS
from entropy_attn.kernels.maps.configs import MapConfig, heads_per_program, key_tiles, map_config


@pytest.mark.parametrize(
    "seqlen_k, tiles",
    [(1, (16, 0)), (16, (16, 0)), (17, (32, 0)), (33, (32, 16)), (77, (64, 16)), (81, (64, 32)), (97, (128, 0))],
)
def test_tiles_of_keys(seqlen_k, tiles):
    assert key_tiles(seqlen_k) == tiles


@pytest.mark.parametrize("seqlen_k", range(1, 129))
def test_tiles_cover_all_keys(seqlen_k):
    first, second = key_tiles(seqlen_k)
    assert seqlen_k <= first + second < seqlen_k + 32 and second <= first
    assert second == 0 or first < seqlen_k  # the second tile contains keys, and the first is full


@pytest.mark.parametrize("chunk", [32, 64])
@pytest.mark.parametrize("head_dim", range(16, 257, 8))
def test_a_head_dim_is_split_closely(head_dim, chunk):
    held = MapConfig(64, (64, 0), 4, 1, chunk=chunk).in_chunks(head_dim)
    *full, last = held.chunks
    assert all(each.width == chunk for each in full) and last.width in (16, 32, 64) and last.width <= chunk
    assert [each.start for each in held.chunks] == list(range(0, head_dim, chunk))
    assert head_dim <= held.width < head_dim + chunk // 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_call_has_a_configuration(target, dtype):
    for head_dim in range(16, 257, 8):
        for mask_per_query in (False, True):
            for seqlen_k in (1, 77, 80, 81, 120, 128, 129, 4096):
                config = map_config(
                    target, head_dim, head_dim, dtype, seqlen_k=seqlen_k, mask_per_query=mask_per_query
                )  # fmt: skip
                assert config.block_m % 16 == 0 and config.block_n % 16 == 0
                assert not config.one_pass or config.block_n >= seqlen_k
                assert not (config.one_pass and mask_per_query)


def test_clip_s_keys_take_one_pass():
    for target in TARGETS:
        for head_dim in (40, 64, 80, 96, 128):
            assert map_config(target, head_dim, head_dim, torch.float16, seqlen_k=77).one_pass


def test_the_wider_of_two_head_dims_decides():
    wide = map_config("sm_90", 256, 256, torch.float16, seqlen_k=77)
    for widths in ((64, 256), (256, 64)):
        assert map_config("sm_90", *widths, torch.float16, seqlen_k=77) == wide


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"target: expected one of sm_80, .*got 'sm_70'"):
        map_config("sm_70", 64, 64, torch.float16, seqlen_k=77)


def test_heads_are_distributed_only_if_programs_are_few(monkeypatch):
    monkeypatch.setitem(MULTIPROCESSORS, "sm_90", 132)
    assert heads_per_program("sm_90", 8, 132) == heads_per_program("sm_90", 8, 10_000) == 8
    assert heads_per_program("sm_90", 8, 131) == 8  # in two parts half of the heads wait for a second round
    assert heads_per_program("sm_90", 8, 66) == 4
    assert heads_per_program("sm_90", 8, 64) == 4  # SD 1.5 at 512 px: three parts would take two rounds of 3 heads
    assert heads_per_program("sm_90", 10, 64) == 5  # SDXL at 1024 px
    assert heads_per_program("sm_90", 8, 40) == 3  # 3 + 3 + 2
    assert heads_per_program("sm_90", 5, 40) == 2  # 2 + 2 + 1
    assert heads_per_program("sm_90", 8, 1) == heads_per_program("sm_90", 1, 500) == 1
    assert heads_per_program("sm_90", 8, 100, num_warps=4) == 4  # two such programs run at once
    assert heads_per_program("sm_90", 8, 100, num_warps=8) == 8


def test_no_other_number_of_parts_takes_fewer_steps():
    slots = MULTIPROCESSORS["sm_90"]
    for num_heads in (1, 5, 8, 10, 20, 24):
        for programs in range(1, 300):

            def steps(heads):
                return -(-programs * -(-num_heads // heads) // slots) * heads  # noqa: B023  (called at once)

            most = min(num_heads, -(-slots // programs))
            chosen = heads_per_program("sm_90", num_heads, programs)
            allowed = [heads for heads in range(1, num_heads + 1) if -(-num_heads // heads) <= most]
            assert chosen in allowed and steps(chosen) == min(map(steps, allowed))
            fewer = [heads for heads in allowed if -(-num_heads // heads) < -(-num_heads // chosen)]
            assert all(steps(heads) > steps(chosen) for heads in fewer)
