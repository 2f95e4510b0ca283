"""Which tile sizes the map kernels are compiled with: a plain table, without Triton or a GPU.

Every row was compiled ahead of time for its target and found free of register spills (tests/codegen holds that).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..common.head_dims import in_equal_chunks
from ..common.targets import INTERPRETER, MULTIPROCESSORS, max_registers, require_target
from ..common.tensors import HeadDim
from ..forward.configs import SHORT_KEYS


@dataclass(frozen=True)
class MapConfig:
    """How a map kernel is compiled."""

    block_m: int  # queries a program
    key_tiles: tuple[int, int]  # keys a program, in one or two tiles; in one pass they hold all keys
    num_warps: int
    num_stages: int
    one_pass: bool = True  # output, statistics and map from one kernel; else the forward kernel, then a sweep
    chunk: int = 64  # columns of a head dim that one product takes
    max_registers: int | None = None  # NVIDIA: keeps the assembler from its occasional collapse to 32 registers

    @property
    def block_n(self) -> int:
        return sum(self.key_tiles)

    def in_chunks(self, head_dim: int) -> HeadDim:
        """A head dim as the kernel goes through it."""
        return in_equal_chunks(head_dim, self.chunk)


def key_tiles(seqlen_k: int) -> tuple[int, int]:
    """One or two powers of two from 16 to 128 that cover the keys closely: 77, CLIP's, takes 64 + 16, not 128."""
    sizes = (16, 32, 64, 128)
    covers = [(a, b) for a in sizes for b in (0, *sizes) if b <= a and a + b >= seqlen_k]
    return min(covers, key=lambda cover: (sum(cover), cover[1] > 0))


class _OnePass(NamedTuple):
    """The tiles of calls with at most so many keys and so wide heads; calls without a row are swept.

    A warp takes at least 16 queries of the tiles of scores, and fetching keys takes the fewest registers where 8 warps
    share it.
    """

    most_keys: int
    widest: int
    block_m: int
    num_warps: int
    num_stages: int
    chunk: int


class _Sweep(NamedTuple):
    """The tiles of calls with heads of at most this width."""

    widest: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    chunk: int


_ONE_PASS: dict[str, list[_OnePass]] = {
    "sm_80": [_OnePass(80, 256, 128, 8, 2, 32), _OnePass(128, 160, 128, 8, 2, 32)],
    "sm_89": [_OnePass(80, 160, 128, 8, 2, 32), _OnePass(80, 192, 64, 4, 2, 32), _OnePass(128, 64, 128, 8, 2, 32)],
    "sm_90": [_OnePass(80, 160, 128, 8, 2, 32), _OnePass(128, 256, 128, 8, 1, 32)],
    "sm_100": [_OnePass(80, 96, 128, 8, 2, 32), _OnePass(80, 128, 128, 8, 2, 64)],
    "sm_120": [_OnePass(80, 160, 128, 8, 2, 32), _OnePass(80, 192, 64, 4, 2, 32)],
    "gfx942": [_OnePass(128, 256, 128, 8, 1, 32)],
}
_SWEEP: dict[str, list[_Sweep]] = {
    "sm_80": [_Sweep(80, 64, 64, 4, 2, 64), _Sweep(192, 64, 32, 4, 2, 32), _Sweep(256, 64, 16, 4, 2, 32)],
    "sm_89": [_Sweep(80, 64, 64, 4, 2, 64), _Sweep(192, 64, 32, 4, 2, 32), _Sweep(256, 64, 16, 4, 2, 32)],
    "sm_90": [_Sweep(256, 64, 64, 4, 2, 64)],
    "sm_100": [_Sweep(256, 64, 64, 4, 2, 64)],
    "sm_120": [_Sweep(64, 64, 64, 4, 2, 64), _Sweep(256, 64, 32, 4, 2, 32)],
    "gfx942": [_Sweep(256, 64, 64, 4, 1, 64)],
}
# A mask with a row for each query is one more tile, fetched element by element where its rows are not aligned.
_MASKED: dict[str, list[_Sweep]] = {
    "sm_80": [_Sweep(160, 64, 32, 4, 2, 32), _Sweep(256, 64, 16, 4, 2, 32)],
    "sm_89": [_Sweep(160, 64, 32, 4, 2, 32), _Sweep(256, 64, 16, 4, 2, 32)],
    "sm_90": [_Sweep(160, 64, 64, 8, 2, 64), _Sweep(256, 64, 64, 4, 1, 64)],
    "sm_100": [_Sweep(256, 64, 64, 4, 2, 64)],
    "sm_120": [_Sweep(160, 64, 32, 4, 2, 32), _Sweep(256, 64, 16, 4, 2, 32)],
    "gfx942": [_Sweep(256, 64, 64, 4, 1, 64)],
}
# Exact float32 products run on the plain FMA units of NVIDIA GPUs, which want small tiles.
_FLOAT32: list[_Sweep] = [_Sweep(256, 32, 16, 8, 1, 16)]


@functools.lru_cache(maxsize=1024)  # asked at every launch
def map_config(
    target: str, head_dim: int, head_dim_v: int, dtype: torch.dtype, *, seqlen_k: int, mask_per_query: bool = False,
    sweep: bool = False,
) -> MapConfig:  # fmt: skip
    """The table's configuration for a call with a map. Every row serves causal calls, statistics and any scale.

    `sweep`: not in one pass, whatever the number of keys.
    """
    if target == INTERPRETER:
        short = seqlen_k <= SHORT_KEYS and not sweep
        return MapConfig(32, key_tiles(seqlen_k) if short else (64, 0), 4, 1, one_pass=short)
    require_target(target)
    if seqlen_k <= SHORT_KEYS and dtype != torch.float32 and not mask_per_query and not sweep:
        tiles, width = key_tiles(seqlen_k), max(head_dim, head_dim_v)
        for row in _ONE_PASS[target]:
            if sum(tiles) <= row.most_keys and width <= row.widest:
                return _config(target, row, tiles, one_pass=True)
    rows = _FLOAT32 if dtype == torch.float32 else _MASKED[target] if mask_per_query else _SWEEP[target]
    swept = next(row for row in rows if head_dim <= row.widest)
    return _config(target, swept, (swept.block_n, 0), one_pass=False)


def _config(target: str, row: _OnePass | _Sweep, tiles: tuple[int, int], one_pass: bool) -> MapConfig:
    return MapConfig(
        row.block_m,
        tiles,
        row.num_warps,
        row.num_stages,
        one_pass,
        chunk=row.chunk,
        max_registers=max_registers(target),
    )


def heads_per_program(target: str, num_heads: int, programs: int, num_warps: int = 8) -> int:
    """How many heads a program adds up: all of them, unless programs that each take a part of them end earlier.

    A multiprocessor runs 8 warps at a time, and programs beyond what all of them run wait for a next round. The time is
    the number of rounds times that of a program's heads. Of equally fast divisions, the one with the fewest parts: each
    part of the map is written, and read again by the sum. For the same reason there are no more parts than it takes to
    give every multiprocessor a program.
    """
    return _heads_per_program(MULTIPROCESSORS[target], num_heads, programs, num_warps)


@functools.lru_cache(maxsize=1024)  # asked at every launch
def _heads_per_program(multiprocessors: int, num_heads: int, programs: int, num_warps: int) -> int:
    at_once = multiprocessors * max(1, 8 // num_warps)
    most = min(num_heads, -(-multiprocessors // max(1, programs)))
    steps: dict[int, int] = {}  # {heads: rounds times heads}
    for parts in range(1, max(1, most) + 1):
        heads = max(1, -(-num_heads // parts))
        steps.setdefault(heads, -(-programs * -(-num_heads // heads) // at_once) * heads)
    return min(steps, key=steps.__getitem__)  # the first of equals has the fewest parts


def map_programs(config: MapConfig, batch: int, parts: int, seqlen_q: int, columns: int) -> int:
    """How many programs of the map's kernel run, for `parts` of the heads and so many keys of the map."""
    blocks = -(-seqlen_q // config.block_m) * (1 if config.one_pass else -(-columns // config.block_n))
    return batch * parts * blocks
