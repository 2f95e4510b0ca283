"""Which tile sizes the map kernels are compiled with: a plain table, without Triton or a GPU.

Every row was compiled ahead of time for its target and found free of register spills (tests/codegen holds that).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ..forward.configs import INTERPRETER, SHORT_KEYS, TARGETS

# How many programs run at once: of a target's largest card, since idle units cost more than a sum over a few parts.
MULTIPROCESSORS = {
    "sm_80": 108,
    "sm_89": 142,
    "sm_90": 132,
    "sm_100": 148,
    "sm_120": 188,
    "gfx942": 304,
    INTERPRETER: 1,
}


@dataclass(frozen=True)
class MapConfig:
    """How a map kernel is compiled."""

    block_m: int  # queries a program
    key_tiles: tuple[int, int]  # keys a program, in one or two tiles; in one pass they hold all keys
    num_warps: int
    num_stages: int
    one_pass: bool = (
        True  # output, statistics and map from one kernel; else the forward kernel, then a sweep for the map
    )
    chunk: int = 64  # columns of a head dim that one product takes
    max_registers: int | None = None  # NVIDIA: keeps the assembler from its occasional collapse to 32 registers

    @property
    def block_n(self) -> int:
        return sum(self.key_tiles)

    def split(self, head_dim: int) -> tuple[int, int]:
        """``(full, tail)``: a head dim as whole chunks of ``full`` columns in all, and a power of two for the rest."""
        rest = head_dim % self.chunk
        return head_dim - rest, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def key_tiles(seqlen_k: int) -> tuple[int, int]:
    """One or two powers of two from 16 to 128 that cover the keys closely: 77, CLIP's, takes 64 + 16, not 128."""
    sizes = (16, 32, 64, 128)
    covers = [(a, b) for a in sizes for b in (0, *sizes) if b <= a and a + b >= seqlen_k]
    return min(covers, key=lambda cover: (sum(cover), cover[1] > 0))


# Rows are (most keys, widest head dim, block_m, num_warps, num_stages, chunk); a call without a row is swept. A warp
# takes at least 16 queries of the tiles of scores, and fetching keys takes the fewest registers where 8 warps share it.
_Row = tuple[int, int, int, int, int, int]
_ONE_PASS: dict[str, list[_Row]] = {
    "sm_80": [(80, 256, 128, 8, 2, 32), (128, 160, 128, 8, 2, 32)],
    "sm_89": [(80, 160, 128, 8, 2, 32), (80, 192, 64, 4, 2, 32), (128, 64, 128, 8, 2, 32)],
    "sm_90": [(80, 160, 128, 8, 2, 32), (128, 256, 128, 8, 1, 32)],
    "sm_100": [(80, 96, 128, 8, 2, 32), (80, 128, 128, 8, 2, 64)],
    "sm_120": [(80, 160, 128, 8, 2, 32), (80, 192, 64, 4, 2, 32)],
    "gfx942": [(128, 256, 128, 8, 1, 32)],
}
# Rows are (widest head dim, block_m, block_n, num_warps, num_stages, chunk).
_SWEEP: dict[str, list[_Row]] = {
    "sm_80": [(80, 64, 64, 4, 2, 64), (192, 64, 32, 4, 2, 32), (256, 64, 16, 4, 2, 32)],
    "sm_89": [(80, 64, 64, 4, 2, 64), (192, 64, 32, 4, 2, 32), (256, 64, 16, 4, 2, 32)],
    "sm_90": [(256, 64, 64, 4, 2, 64)],
    "sm_100": [(256, 64, 64, 4, 2, 64)],
    "sm_120": [(64, 64, 64, 4, 2, 64), (256, 64, 32, 4, 2, 32)],
    "gfx942": [(256, 64, 64, 4, 1, 64)],
}
# A mask with a row for each query is a tile of its own, fetched element by element where its rows are not aligned.
_MASKED: dict[str, list[_Row]] = {
    "sm_80": [(160, 64, 32, 4, 2, 32), (256, 64, 16, 4, 2, 32)],
    "sm_89": [(160, 64, 32, 4, 2, 32), (256, 64, 16, 4, 2, 32)],
    "sm_90": [(160, 64, 64, 8, 2, 64), (256, 64, 64, 4, 1, 64)],
    "sm_100": [(256, 64, 64, 4, 2, 64)],
    "sm_120": [(160, 64, 32, 4, 2, 32), (256, 64, 16, 4, 2, 32)],
    "gfx942": [(256, 64, 64, 4, 1, 64)],
}
# Exact float32 products run on the plain FMA units of NVIDIA GPUs, which want small tiles.
_FLOAT32: list[_Row] = [(256, 32, 16, 8, 1, 16)]


@functools.lru_cache(maxsize=1024)  # asked at every launch
def map_config(
    target: str, head_dim: int, head_dim_v: int, dtype: torch.dtype, *, seqlen_k: int, mask_per_query: bool = False
) -> MapConfig:
    """The table's configuration for a call with a map. Every row serves causal calls, statistics and any scale."""
    if target == INTERPRETER:
        short = seqlen_k <= SHORT_KEYS
        return MapConfig(32, key_tiles(seqlen_k) if short else (64, 0), 4, 1, one_pass=short)
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    max_registers = None if target.startswith("gfx") else 255
    if seqlen_k <= SHORT_KEYS and dtype != torch.float32 and not mask_per_query:
        tiles, width = key_tiles(seqlen_k), max(head_dim, head_dim_v)
        for most_keys, widest, block_m, num_warps, num_stages, chunk in _ONE_PASS[target]:
            if sum(tiles) <= most_keys and width <= widest:
                return MapConfig(
                    block_m, tiles, num_warps, num_stages, chunk=chunk, max_registers=max_registers
                )  # fmt: skip
    rows = _FLOAT32 if dtype == torch.float32 else _MASKED[target] if mask_per_query else _SWEEP[target]
    _, block_m, block_n, num_warps, num_stages, chunk = next(row for row in rows if head_dim <= row[0])
    return MapConfig(
        block_m, (block_n, 0), num_warps, num_stages, one_pass=False, chunk=chunk, max_registers=max_registers
    )


def heads_per_program(target: str, num_heads: int, programs: int) -> int:
    """How many heads a program adds up: all of them, unless there would be fewer programs than multiprocessors."""
    parts = min(num_heads, -(-MULTIPROCESSORS[target] // max(1, programs)))
    return -(-num_heads // max(1, parts))


def map_programs(config: MapConfig, batch: int, parts: int, seqlen_q: int, columns: int) -> int:
    """How many programs of the map's kernel run, for ``parts`` of the heads and so many keys of the map."""
    blocks = -(-seqlen_q // config.block_m) * (1 if config.one_pass else -(-columns // config.block_n))
    return batch * parts * blocks
