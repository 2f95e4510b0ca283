"""Which tiles the Gluon kernel can have: a search over what fits into registers and shared memory, without Triton."""

from __future__ import annotations

from typing import NamedTuple

ROWS = 64  # queries a group of warps: the height of one wgmma
WARPS_A_GROUP = 4
GROUPS = (2, 3)
BLOCKS_N = (16, 32, 64, 128, 256)


class Tiles(NamedTuple):
    """How many groups compute, over how many keys at a time, in rings of how many stages."""

    groups: int
    block_n: int
    stages: int

    @property
    def consumer_registers(self) -> int:
        return 240 if self.groups == 2 else 160

    @property
    def producer_registers(self) -> int:
        return 24

    @property
    def max_registers(self) -> int:
        return 168 if self.groups == 2 else 128


def feasible_tiles(head_dim: int) -> list[Tiles]:
    return [Tiles(2, 128, 2)]


def unsupported_tiles(tiles: Tiles, block_m: int) -> list[str]:
    """Why the kernel cannot be compiled with these tiles; empty where it can."""
    reasons = []
    if tiles.groups not in GROUPS or block_m != tiles.groups * ROWS:
        reasons.append(f"block_m: expected {' or '.join(str(n * ROWS) for n in GROUPS)}, got {block_m}")
    if tiles.block_n not in BLOCKS_N:
        reasons.append(f"block_n: expected one of {', '.join(map(str, BLOCKS_N))}, got {tiles.block_n}")
    if tiles.stages < 2:
        reasons.append(f"num_stages: expected at least 2, got {tiles.stages}")
    return reasons
