"""Which tile sizes, warps and stages the forward kernel is compiled with: a plain table, without Triton or a GPU.

Every row was compiled ahead of time for its target and found free of register spills (tests/codegen holds that).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..common.head_dims import MAX_HEAD_DIM, head_dim_chunks, in_chunks, width_held
from ..common.targets import INTERPRETER, max_registers, require_target
from ..common.tensors import HeadDim
from ..pingpong.configs import ROWS, WARPS_A_GROUP, Tiles, feasible_tiles

LEAST_KEYS = 16  # that a product has
SHORT_KEYS = 128  # up to here a program sees one or two key blocks, and preparing descriptors costs more than they save

# "specialized": some warps only fetch, and the others only compute; with descriptors, without a mask.
# "rotated": the next block's products run while this block's exponentials are taken; for a head dim in one chunk.
# "pingpong": FlashAttention-3's, in Gluon: some warps fetch, and the others take turns at products; without a mask.
# None of them has run on a card yet, so they are for autotuning to choose.
SCHEDULES = ("plain", "specialized", "rotated", "pingpong")


@dataclass(frozen=True)
class ForwardConfig:
    """How the forward kernel is compiled."""

    block_m: int  # queries a program
    block_n: int  # keys an iteration
    num_warps: int
    num_stages: int
    descriptors: bool = False  # keys and values by tensor descriptors (sm_90 and later) instead of pointers
    split_d: bool = True  # a head dim as up to three powers of two, instead of padded to one
    max_chunk: int = MAX_HEAD_DIM  # the widest of these; 64 or 128 where wider tiles of a product spill
    schedule: str = "plain"  # of the loop, one of SCHEDULES
    max_registers: int | None = None  # NVIDIA: keeps the assembler from its occasional collapse to 32 registers
    by_lane: bool = False  # each lane keeps its part of the sums over a row until the last block: common/softmax.py

    def in_chunks(self, head_dim: int) -> HeadDim:
        """A head dim as the kernel holds it."""
        return in_chunks(head_dim, self.max_chunk, padded=not self.split_d)

    @property
    def groups(self) -> tuple[int, int]:
        """Groups of `num_warps` warps in a program: those that share a tile of scores, and those that only load."""
        computing = {"specialized": 2, "pingpong": self.block_m // ROWS}
        return computing.get(self.schedule, 1), int(self.schedule in computing)

    @property
    def tiles(self) -> Tiles:
        """Of the schedule "pingpong"."""
        return Tiles(self.block_m // ROWS, self.block_n, self.num_stages)


class _Row(NamedTuple):
    """The tiles of all calls whose `width_held` is at most `widest`, and beyond that of the row before.

    Wider heads leave fewer registers for the tile of scores.
    """

    widest: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_chunk: int
    by_lane: bool = False  # where that takes fewer instructions and does not spill


_DESCRIPTORS: dict[str, list[_Row]] = {
    "sm_90": [
        _Row(96, 128, 128, 8, 2, 256, by_lane=True),
        _Row(112, 128, 128, 8, 2, 256),
        _Row(128, 128, 128, 8, 2, 256, by_lane=True),
        _Row(176, 128, 128, 8, 2, 256),
        _Row(256, 128, 64, 8, 2, 128),
    ],
    "sm_100": [_Row(96, 128, 128, 8, 2, 256), _Row(256, 128, 64, 8, 2, 128)],
    "sm_120": [
        _Row(128, 128, 64, 8, 2, 256, by_lane=True),
        _Row(192, 128, 64, 8, 2, 256),
        _Row(256, 128, 32, 8, 2, 128),
    ],
}
_AMPERE: list[_Row] = [
    _Row(80, 128, 64, 8, 3, 256, by_lane=True),
    _Row(96, 128, 64, 8, 2, 256, by_lane=True),
    _Row(112, 128, 32, 8, 2, 64, by_lane=True),
    _Row(128, 128, 64, 8, 2, 64, by_lane=True),
    _Row(192, 128, 16, 8, 2, 64, by_lane=True),
    _Row(256, 32, 32, 4, 2, 128),
]
_POINTERS: dict[str, list[_Row]] = {
    "sm_80": _AMPERE,
    "sm_89": _AMPERE,
    "sm_90": [_Row(160, 128, 64, 8, 2, 256, by_lane=True), _Row(256, 128, 32, 8, 2, 128, by_lane=True)],
    "sm_100": [_Row(192, 128, 64, 8, 2, 256), _Row(256, 128, 32, 8, 2, 128)],
    "sm_120": [
        _Row(96, 128, 32, 8, 2, 256, by_lane=True),
        _Row(112, 64, 16, 4, 2, 64, by_lane=True),
        _Row(128, 128, 64, 8, 2, 64, by_lane=True),
        _Row(192, 128, 16, 8, 2, 64, by_lane=True),
        _Row(256, 32, 32, 4, 2, 128),
    ],
    "gfx942": [
        _Row(64, 128, 64, 4, 1, 256, by_lane=True),
        _Row(80, 128, 32, 4, 1, 128, by_lane=True),
        _Row(96, 128, 32, 4, 1, 128),  # by lane, 8 instead of 12 waves would run at a time
        _Row(256, 128, 32, 4, 1, 128, by_lane=True),
    ],
}
# The mask's tile needs registers as well, most where its rows are not aligned.
_MASKED: dict[str, list[_Row]] = {
    "sm_80": [_Row(112, 128, 32, 8, 3, 128), _Row(192, 128, 16, 8, 2, 128), _Row(256, 64, 16, 8, 2, 128)],
    "sm_89": [_Row(96, 128, 32, 8, 3, 128), _Row(192, 128, 16, 8, 2, 128), _Row(256, 64, 16, 8, 2, 128)],
    "sm_90": [_Row(160, 128, 32, 8, 2, 256), _Row(256, 64, 32, 8, 2, 128)],
    "sm_100": [_Row(256, 64, 32, 8, 2, 128)],
    "sm_120": [
        _Row(64, 128, 32, 8, 3, 128),
        _Row(96, 128, 16, 8, 2, 64),
        _Row(112, 32, 16, 4, 2, 64),
        _Row(128, 128, 16, 8, 2, 128),
        _Row(160, 32, 16, 4, 2, 64),
        _Row(192, 128, 16, 8, 2, 64),
        _Row(256, 64, 16, 8, 2, 128),
    ],
    "gfx942": [_Row(64, 128, 32, 4, 1, 256), _Row(256, 64, 32, 4, 1, 128)],
}
# Exact float32 products run on the plain FMA units of NVIDIA GPUs, which want small tiles; AMD has matrix units.
_FLOAT32_NVIDIA: list[_Row] = [_Row(64, 32, 32, 8, 1, 256), _Row(128, 32, 16, 8, 1, 256), _Row(256, 16, 16, 8, 1, 256)]
_FLOAT32_AMD: list[_Row] = [_Row(128, 64, 16, 4, 1, 256), _Row(256, 32, 16, 4, 1, 128)]


@functools.lru_cache(maxsize=1024)  # asked at every launch
def forward_config(
    target: str,
    head_dim: int,
    head_dim_v: int,
    dtype: torch.dtype,
    *,
    seqlen_k: int | None = None,
    has_mask: bool = False,
    descriptors: bool = True,
    by_key: bool = False,
) -> ForwardConfig:
    """The table's configuration for a call.

    `seqlen_k` None means long. `descriptors` False: the strides do not allow them. Every row serves causal calls, any
    scale, and all statistics but the mass. `by_key`: beside the scores there are numbers of each key (a factor, a bias,
    whether the mass has it), which take registers as well, so that a block has half of the keys.
    """
    return forward_candidates(
        target,
        head_dim,
        head_dim_v,
        dtype,
        seqlen_k=seqlen_k,
        has_mask=has_mask,
        descriptors=descriptors,
        by_key=by_key,
    )[0]


def forward_candidates(
    target: str,
    head_dim: int,
    head_dim_v: int,
    dtype: torch.dtype,
    *,
    seqlen_k: int | None = None,
    has_mask: bool = False,
    descriptors: bool = True,
    by_key: bool = False,
) -> list[ForwardConfig]:
    """What autotuning tries for a call: the table's choice first, then its neighbors."""
    if target == INTERPRETER:
        return [ForwardConfig(64, 64, 4, 1, by_lane=True), ForwardConfig(32, 64, 4, 1, by_lane=True)]
    require_target(target)
    width = width_held(head_dim, head_dim_v)
    amd = target.startswith("gfx")
    by_pointer = _POINTERS[target]
    if dtype == torch.float32:
        return [_from_row(target, _row(_FLOAT32_AMD if amd else _FLOAT32_NVIDIA, width))]
    if has_mask:
        chosen = _from_row(target, _row(_MASKED[target], width))
    elif target in _DESCRIPTORS and descriptors and (seqlen_k is None or seqlen_k > SHORT_KEYS):
        chosen = _from_row(target, _row(_DESCRIPTORS[target], width), descriptors=True)
    else:
        chosen = _from_row(target, _row(by_pointer, width))
    fewer_queries = (target == "sm_120" and width > 160) or (target == "sm_89" and 160 < width <= 192)
    if by_key and has_mask and fewer_queries:  # these blocks cannot have fewer keys
        chosen = replace(chosen, block_m=32, num_warps=4)
    elif by_key:
        chosen = replace(chosen, block_n=max(LEAST_KEYS, chosen.block_n // 2), by_lane=chosen.by_lane and not amd)
    neighbours = [
        chosen,
        replace(chosen, block_n=chosen.block_n // 2),
        replace(chosen, block_m=64, num_warps=4),
        replace(chosen, block_m=64, block_n=32, num_warps=4),
        replace(chosen, num_stages=chosen.num_stages + 1),
        replace(chosen, split_d=False),
        _from_row(target, _row(by_pointer, width)),
    ]
    if target == "sm_90" and chosen.descriptors:
        whole = seqlen_k is not None and seqlen_k % chosen.block_n == 0
        neighbours += _schedules(chosen, (head_dim, head_dim_v), whole)
    return [c for c in dict.fromkeys(neighbours) if c.block_n >= LEAST_KEYS]


def _schedules(chosen: ForwardConfig, head_dims: tuple[int, int], whole_blocks: bool) -> list[ForwardConfig]:
    """The other schedules that can pay: a specialized loop checks every block where one is not whole."""
    others = []
    if whole_blocks:  # its compiler deals registers out by itself: a limit would count them for all its warps
        others.append(replace(chosen, schedule="specialized", num_warps=4, max_registers=None))
    if max(head_dims) <= 128 and all(len(head_dim_chunks(d)) == 1 for d in head_dims):
        # Exchanges for the sums keep the exponentials where they are: by lane, ptxas moves them out of the overlap.
        sizes = (chosen.block_n, chosen.block_n // 2)
        others += [replace(chosen, schedule="rotated", block_n=n, by_lane=False) for n in sizes]
    if head_dims[0] == head_dims[1]:  # with the output in the place of the queries
        others += [_pingpong(tiles) for tiles in feasible_tiles(head_dims[0])]
    return others


def _pingpong(tiles: Tiles) -> ForwardConfig:
    return ForwardConfig(
        tiles.groups * ROWS, tiles.block_n, WARPS_A_GROUP, tiles.stages, descriptors=True, schedule="pingpong",
        max_registers=tiles.max_registers, by_lane=True,
    )  # fmt: skip


def _row(rows: list[_Row], width: int) -> _Row:
    return next(row for row in rows if width <= row.widest)


def _from_row(target: str, row: _Row, descriptors: bool = False) -> ForwardConfig:
    return ForwardConfig(
        row.block_m, row.block_n, row.num_warps, row.num_stages, descriptors,
        max_chunk=row.max_chunk, max_registers=max_registers(target), by_lane=row.by_lane,
    )  # fmt: skip
