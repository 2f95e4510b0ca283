"""Which tile sizes, warps and stages the forward kernel is compiled with: a plain table, without Triton or a GPU.

Every row was compiled ahead of time for its target and found free of register spills (tests/codegen holds that).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import torch

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
INTERPRETER = "interpreter"
SHORT_KEYS = 128  # up to here a program sees one or two key blocks, and preparing descriptors costs more than they save
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
MAX_CHUNKS = 3

# Shared memory that one program may have, in bytes.
SHARED_MEMORY = {
    "sm_80": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}

# "specialized": warps of their own fetch, and the others only compute; with descriptors, without a mask.
# "rotated": the next block's products run while this block's exponentials are taken; for a head dim in one chunk.
# Neither has run on a card yet, so they are for autotuning to choose.
SCHEDULES = ("plain", "specialized", "rotated")


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

    def chunks(self, head_dim: int) -> tuple[int, int, int]:
        """The widths in which the kernel holds a head dim; 0 for a chunk it does not need."""
        chunks = head_dim_chunks(head_dim, self.max_chunk) if self.split_d else (_power_of_two(head_dim),)
        return (*chunks, *(0,) * (MAX_CHUNKS - len(chunks)))


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


@functools.cache
def head_dim_chunks(head_dim: int, max_chunk: int = MAX_HEAD_DIM) -> tuple[int, ...]:
    """At most three descending powers of two from 16 to ``max_chunk``, with the least sum that covers the head dim.

    Beyond 128 two where two are enough: three accumulators of that width leave too few registers.
    """
    most = 2 if 128 < head_dim <= 2 * max_chunk else MAX_CHUNKS
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim % 8:
        raise ValueError(f"head_dim must be a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got {head_dim}")
    sizes = [size for size in (256, 128, 64, 32, 16) if size <= max_chunk]
    covers = (
        cover
        for count in range(1, most + 1)
        for cover in itertools.combinations_with_replacement(sizes, count)
        if sum(cover) >= head_dim
    )
    return min(covers, key=lambda cover: (sum(cover), len(cover)))


# Rows are (largest width served, block_m, block_n, num_warps, num_stages, widest chunk); a width is the sum of a head
# dim's chunks, of the wider one where value's differs. Wider heads leave fewer registers for the tile of scores.
_Row = tuple[int, int, int, int, int, int]
_DESCRIPTORS: dict[str, list[_Row]] = {
    "sm_90": [(176, 128, 128, 8, 2, 256), (256, 128, 64, 8, 2, 128)],
    "sm_100": [(96, 128, 128, 8, 2, 256), (256, 128, 64, 8, 2, 128)],
    "sm_120": [(192, 128, 64, 8, 2, 256), (256, 128, 32, 8, 2, 128)],
}
_AMPERE: list[_Row] = [
    (80, 128, 64, 8, 3, 256),
    (96, 128, 64, 8, 2, 256),
    (112, 128, 32, 8, 2, 64),
    (128, 128, 64, 8, 2, 64),
    (192, 128, 16, 8, 2, 64),
    (256, 32, 32, 4, 2, 128),
]
_POINTERS: dict[str, list[_Row]] = {
    "sm_80": _AMPERE,
    "sm_89": _AMPERE,
    "sm_90": [(160, 128, 64, 8, 2, 256), (256, 128, 32, 8, 2, 128)],
    "sm_100": [(192, 128, 64, 8, 2, 256), (256, 128, 32, 8, 2, 128)],
    "sm_120": [
        (96, 128, 32, 8, 2, 256),
        (112, 64, 16, 4, 2, 64),
        (128, 128, 64, 8, 2, 64),
        (192, 128, 16, 8, 2, 64),
        (256, 32, 32, 4, 2, 128),
    ],
    "gfx942": [(64, 128, 64, 4, 1, 256), (256, 128, 32, 4, 1, 128)],
}
# The mask's tile needs registers as well, most where its rows are not aligned.
_MASKED: dict[str, list[_Row]] = {
    "sm_80": [(112, 128, 32, 8, 3, 128), (192, 128, 16, 8, 2, 128), (256, 64, 16, 8, 2, 128)],
    "sm_89": [(96, 128, 32, 8, 3, 128), (192, 128, 16, 8, 2, 128), (256, 64, 16, 8, 2, 128)],
    "sm_90": [(160, 128, 32, 8, 2, 256), (256, 64, 32, 8, 2, 128)],
    "sm_100": [(256, 64, 32, 8, 2, 128)],
    "sm_120": [
        (64, 128, 32, 8, 3, 128),
        (96, 128, 16, 8, 2, 64),
        (112, 32, 16, 4, 2, 64),
        (128, 128, 16, 8, 2, 128),
        (160, 32, 16, 4, 2, 64),
        (192, 128, 16, 8, 2, 64),
        (256, 64, 16, 8, 2, 128),
    ],
    "gfx942": [(64, 128, 32, 4, 1, 256), (256, 64, 32, 4, 1, 128)],
}
# Exact float32 products run on the plain FMA units of NVIDIA GPUs, which want small tiles; AMD has matrix units.
_FLOAT32_NVIDIA: list[_Row] = [(64, 32, 32, 8, 1, 256), (128, 32, 16, 8, 1, 256), (256, 16, 16, 8, 1, 256)]
_FLOAT32_AMD: list[_Row] = [(128, 64, 16, 4, 1, 256), (256, 32, 16, 4, 1, 128)]


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
) -> ForwardConfig:
    """The table's configuration for a call.

    ``seqlen_k`` None means long. ``descriptors`` False: the strides do not allow them. Every row serves causal calls,
    statistics and any scale.
    """
    return forward_candidates(
        target,
        head_dim,
        head_dim_v,
        dtype,
        seqlen_k=seqlen_k,
        has_mask=has_mask,
        descriptors=descriptors,
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
) -> list[ForwardConfig]:
    """What autotuning tries for a call: the table's choice first, then its neighbours."""
    if target == INTERPRETER:
        return [ForwardConfig(64, 64, 4, 1), ForwardConfig(32, 64, 4, 1)]
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    width = max(sum(head_dim_chunks(head_dim)), sum(head_dim_chunks(head_dim_v)))
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
    return [c for c in dict.fromkeys(neighbours) if c.block_n >= 16]


def _schedules(chosen: ForwardConfig, head_dims: tuple[int, int], whole_blocks: bool) -> list[ForwardConfig]:
    """The other schedules that can pay: a specialised loop checks every block where one is not whole."""
    others = []
    if whole_blocks:  # its compiler deals registers out by itself: a limit would count them for all its warps
        others.append(replace(chosen, schedule="specialized", num_warps=4, max_registers=None))
    if max(head_dims) <= 128 and all(len(head_dim_chunks(d)) == 1 for d in head_dims):
        others += [replace(chosen, schedule="rotated", block_n=n) for n in (chosen.block_n, chosen.block_n // 2)]
    return others


def _row(rows: list[_Row], width: int) -> _Row:
    return next(row for row in rows if width <= row[0])


def _from_row(target: str, row: _Row, descriptors: bool = False) -> ForwardConfig:
    _, block_m, block_n, num_warps, num_stages, max_chunk = row
    max_registers = None if target.startswith("gfx") else 255
    return ForwardConfig(
        block_m, block_n, num_warps, num_stages, descriptors, max_chunk=max_chunk, max_registers=max_registers
    )
