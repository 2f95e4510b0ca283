"""Which tile sizes, warps and stages the backward kernels are compiled with: a plain table, without Triton or a GPU.

Every row was compiled ahead of time for its target and found free of register spills (tests/codegen holds that).
Those of `_ONE_STAGE` and `_DESCRIPTORS` were by Triton 3.6 as well, which needs more registers than 3.7.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..common.head_dims import MAX_CHUNKS, MAX_HEAD_DIM, in_chunks, width_held
from ..common.targets import INTERPRETER, MULTIPROCESSORS, max_registers, require_target
from ..common.tensors import HeadDim

ALL_CHUNKS = 2**MAX_CHUNKS - 1


@dataclass(frozen=True)
class TileConfig:
    """How one backward kernel is compiled."""

    block_m: int  # queries a tile of scores
    block_n: int  # keys a tile of scores
    num_warps: int
    num_stages: int
    max_chunk: int = MAX_HEAD_DIM  # the widest power of two in which a head dim is held
    by_chunk: bool = False  # a launch for each chunk of the result: scores once more, for fewer accumulators
    descriptors: bool = False  # what the loop fetches comes by tensor descriptors (sm_90) instead of pointers
    max_registers: int | None = None  # NVIDIA: keeps the assembler from its occasional collapse to 32 registers

    def in_chunks(self, head_dim: int) -> HeadDim:
        """A head dim as the kernel holds it."""
        return in_chunks(head_dim, self.max_chunk)

    def launches(self, head_dim: int) -> list[int]:
        """The chunks of a result that each launch sums, as bits."""
        return [1 << i for i in range(len(self.in_chunks(head_dim).chunks))] if self.by_chunk else [ALL_CHUNKS]


@dataclass(frozen=True)
class BackwardConfig:
    """How the backward kernels are compiled."""

    query: TileConfig  # dQ: a program has block_m queries and passes over the keys
    key: TileConfig  # dK and dV: a program has block_n keys and passes over the queries
    separate: bool = False  # dK and dV by two launches: scores once more, but half of the accumulators
    one_pass: TileConfig | None = None  # dQ, dK and dV by one kernel, for calls whose keys are in one of its blocks

    @functools.cached_property
    def rows(self) -> TileConfig:
        """The rows' values: as dQ, with half of the queries, since out and its gradient are held as well."""
        return replace(self.query, block_m=max(16, self.query.block_m // 2), num_stages=1)


TOGETHER, APART, BY_CHUNK = range(3)


class _Row(NamedTuple):
    """The tiles of all calls whose `width_held` is at most `widest`, and beyond that of the row before."""

    widest: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_chunk: int
    how: int  # dK and dV TOGETHER, APART, or each BY_CHUNK
    descriptors: bool = False


_QUERY: dict[str, list[_Row]] = {
    "sm_80": [
        _Row(64, 128, 64, 8, 2, 256, TOGETHER),
        _Row(96, 128, 32, 8, 2, 64, TOGETHER),
        _Row(112, 128, 16, 8, 2, 64, TOGETHER),
        _Row(128, 128, 32, 8, 2, 64, TOGETHER),
        _Row(192, 128, 16, 8, 2, 64, TOGETHER),
        _Row(256, 32, 32, 8, 1, 128, BY_CHUNK),
    ],
    "sm_89": [
        _Row(64, 128, 64, 8, 2, 256, TOGETHER),
        _Row(96, 128, 32, 8, 2, 64, TOGETHER),
        _Row(112, 128, 16, 8, 2, 64, TOGETHER),
        _Row(128, 128, 32, 8, 2, 64, TOGETHER),
        _Row(192, 64, 16, 8, 2, 64, TOGETHER),
        _Row(256, 32, 32, 8, 1, 128, BY_CHUNK),
    ],
    "sm_90": [
        _Row(64, 128, 128, 8, 2, 128, TOGETHER),
        _Row(128, 128, 64, 8, 2, 128, TOGETHER),
        _Row(256, 128, 32, 8, 2, 128, BY_CHUNK),
    ],
    "sm_100": [
        _Row(64, 128, 64, 8, 2, 128, TOGETHER),
        _Row(128, 64, 64, 8, 2, 128, TOGETHER),
        _Row(256, 64, 32, 8, 2, 128, TOGETHER),
    ],
    "sm_120": [
        _Row(64, 128, 64, 8, 2, 256, TOGETHER),
        _Row(96, 128, 32, 8, 2, 64, TOGETHER),
        _Row(112, 128, 16, 8, 2, 64, TOGETHER),
        _Row(128, 128, 32, 8, 2, 64, TOGETHER),
        _Row(192, 64, 16, 8, 2, 64, TOGETHER),
        _Row(256, 32, 32, 8, 1, 128, BY_CHUNK),
    ],
    "gfx942": [_Row(256, 64, 32, 4, 1, 128, TOGETHER)],
}
_KEY: dict[str, list[_Row]] = {
    "sm_80": [
        _Row(64, 32, 128, 8, 2, 64, TOGETHER),
        _Row(96, 16, 128, 8, 2, 64, TOGETHER),
        _Row(112, 16, 64, 8, 1, 64, APART),
        _Row(128, 16, 128, 8, 2, 64, TOGETHER),
        _Row(192, 16, 64, 8, 1, 64, BY_CHUNK),
        _Row(256, 16, 128, 8, 1, 128, BY_CHUNK),
    ],
    "sm_89": [
        _Row(64, 32, 128, 8, 2, 64, TOGETHER),
        _Row(96, 16, 128, 8, 2, 64, TOGETHER),
        _Row(112, 16, 64, 8, 1, 64, APART),
        _Row(128, 16, 128, 8, 2, 64, TOGETHER),
        _Row(192, 16, 64, 8, 1, 64, BY_CHUNK),
    ],
    "sm_90": [
        _Row(64, 64, 128, 8, 2, 128, TOGETHER),
        _Row(80, 32, 128, 8, 2, 64, TOGETHER),
        _Row(112, 32, 128, 8, 2, 64, APART),
        _Row(128, 32, 128, 8, 2, 128, TOGETHER),
        _Row(192, 32, 128, 8, 2, 64, APART),
        _Row(256, 32, 128, 8, 2, 128, BY_CHUNK),
    ],
    "sm_100": [
        _Row(64, 64, 128, 8, 2, 128, TOGETHER),
        _Row(128, 32, 128, 8, 2, 128, TOGETHER),
        _Row(256, 32, 128, 8, 2, 128, APART),
    ],
    "sm_120": [
        _Row(64, 32, 128, 8, 2, 64, TOGETHER),
        _Row(96, 16, 128, 8, 2, 64, TOGETHER),
        _Row(112, 16, 64, 8, 1, 64, APART),
        _Row(128, 16, 128, 8, 2, 64, TOGETHER),
        _Row(192, 16, 64, 8, 1, 64, BY_CHUNK),
    ],
    "gfx942": [
        _Row(128, 64, 64, 4, 1, 128, TOGETHER),
        _Row(256, 32, 64, 4, 1, 128, TOGETHER),
    ],
}
# The gradient of the scale keeps a tile of scores.
_QUERY_SCALE: dict[str, list[_Row]] = {"sm_90": [_Row(128, 128, 64, 8, 2, 128, TOGETHER), *_QUERY["sm_90"][-1:]]}
# sm_90 with a Triton that fetches tiles by pointer in one stage, by way of the registers, of which few are then left
# (`arguments.pipeline_stages`): of dQ, and of dK and dV.
_ONE_STAGE: tuple[list[_Row], list[_Row]] = (
    _QUERY_SCALE["sm_90"],
    [
        _Row(64, 32, 128, 8, 2, 128, TOGETHER),
        _Row(80, 32, 128, 8, 2, 64, TOGETHER),
        _Row(192, 32, 128, 8, 2, 64, APART),
        _Row(256, 32, 128, 8, 2, 128, BY_CHUNK),
    ],
)
# What replaces these where strides allow descriptors, whose fetches are pipelined with every Triton. With a Triton that
# does the same by pointer, they save no instruction, and they cost host time.
_DESCRIPTORS = (
    [row._replace(descriptors=True) for row in _ONE_STAGE[0]],
    [row._replace(descriptors=row.widest <= 192) for row in _ONE_STAGE[1]],  # wider ones spill 40 bytes
)
# dQ, dK and dV by one kernel, for widths from `least` on: the other widths would spill or take more instructions.
_ONE_PASS: dict[str, list[tuple[int, _Row]]] = {
    "sm_90": [(16, _Row(64, 64, 128, 8, 2, 128, TOGETHER)), (128, _Row(128, 32, 128, 8, 2, 128, TOGETHER))],
}
_ONE_PASS_MASKED: dict[str, list[tuple[int, _Row]]] = {"sm_90": [(64, _Row(64, 32, 128, 8, 2, 128, TOGETHER))]}
# A tile of the mask or of the map's gradient needs registers as well.
_QUERY_MASKED: dict[str, list[_Row]] = {
    "sm_80": [
        _Row(64, 64, 32, 4, 2, 64, TOGETHER),
        _Row(128, 64, 16, 8, 2, 64, TOGETHER),
        _Row(256, 64, 16, 8, 1, 128, BY_CHUNK),
    ],
    "sm_89": [_Row(128, 64, 16, 8, 2, 64, TOGETHER), _Row(256, 64, 16, 8, 1, 128, BY_CHUNK)],
    "sm_90": [
        _Row(64, 64, 32, 4, 2, 128, TOGETHER),
        _Row(128, 128, 32, 8, 2, 64, TOGETHER),
        _Row(256, 128, 32, 8, 2, 128, BY_CHUNK),
    ],
    "sm_100": [_Row(128, 64, 32, 8, 2, 128, TOGETHER), _Row(256, 64, 32, 8, 1, 128, BY_CHUNK)],
    "sm_120": [_Row(128, 64, 16, 8, 2, 64, TOGETHER), _Row(256, 64, 16, 8, 1, 128, BY_CHUNK)],
    "gfx942": [_Row(256, 64, 32, 4, 1, 128, TOGETHER)],
}
_KEY_MASKED: dict[str, list[_Row]] = {
    "sm_80": [
        _Row(64, 32, 64, 8, 1, 64, APART),
        _Row(128, 16, 64, 8, 1, 64, APART),
        _Row(192, 16, 64, 8, 1, 64, BY_CHUNK),
    ],
    "sm_89": [
        _Row(64, 32, 64, 8, 1, 64, APART),
        _Row(128, 16, 64, 8, 1, 64, APART),
        _Row(192, 16, 64, 8, 1, 64, BY_CHUNK),
    ],
    "sm_90": [_Row(64, 16, 128, 8, 2, 128, TOGETHER), _Row(256, 16, 128, 8, 2, 128, BY_CHUNK)],
    "sm_100": [
        _Row(64, 32, 128, 8, 2, 128, TOGETHER),
        _Row(128, 32, 64, 8, 1, 128, APART),
        _Row(256, 32, 64, 8, 1, 128, BY_CHUNK),
    ],
    "sm_120": [
        _Row(64, 32, 64, 8, 1, 64, APART),
        _Row(128, 16, 64, 8, 1, 64, APART),
        _Row(192, 16, 64, 8, 1, 64, BY_CHUNK),
    ],
    "gfx942": [_Row(64, 64, 64, 4, 1, 128, TOGETHER), _Row(256, 32, 32, 4, 1, 128, APART)],
}
# A factor and a bias by key, for some queries, spill a register in the larger tiles.
_KEY_TABLES = {"gfx942": _KEY_MASKED["gfx942"][-1:]}
# Exact float32 products run on the plain FMA units of NVIDIA GPUs, which want small tiles; AMD has matrix units.
_FLOAT32_NVIDIA: tuple[list[_Row], list[_Row]] = (
    [_Row(64, 32, 32, 8, 1, 256, TOGETHER), _Row(128, 32, 32, 8, 1, 64, TOGETHER)],
    [_Row(64, 32, 32, 8, 1, 256, TOGETHER), _Row(128, 32, 32, 8, 1, 64, APART)],
)
_FLOAT32_NVIDIA_MASKED: tuple[list[_Row], list[_Row]] = (
    [
        _Row(64, 32, 32, 8, 1, 256, TOGETHER),
        _Row(80, 32, 32, 8, 1, 64, TOGETHER),
        _Row(96, 64, 16, 8, 1, 64, TOGETHER),
        _Row(112, 16, 32, 8, 1, 64, TOGETHER),
        _Row(128, 32, 32, 8, 1, 64, TOGETHER),
    ],
    # 32 queries would spill 24 bytes on sm_120 with an added mask and a map.
    [_Row(64, 16, 32, 8, 1, 256, TOGETHER), _Row(128, 32, 32, 8, 1, 64, APART)],
)
_FLOAT32_AMD: tuple[list[_Row], list[_Row]] = (
    [_Row(128, 32, 16, 4, 1, 128, TOGETHER), _Row(256, 16, 16, 2, 1, 128, BY_CHUNK)],
    [_Row(128, 32, 16, 4, 1, 128, APART), _Row(256, 16, 16, 4, 1, 128, BY_CHUNK)],
)


@functools.lru_cache(maxsize=1024)  # asked at every launch
def backward_config(
    target: str, head_dim: int, head_dim_v: int, dtype: torch.dtype, *, has_mask: bool = False, has_map: bool = False,
    by_key: bool = False, scale_gradient: bool = False, one_stage: bool = False,
    descriptors: tuple[bool, bool] = (False, False),
) -> BackwardConfig:  # fmt: skip
    """The table's configuration for a call that `support.backward_unsupported` accepts.

    Every row serves causal calls and any scale, and any gradients, but that of the scale only where `scale_gradient`.

    Args:
        by_key: There is a factor or bias by key, which needs registers like a mask.
        one_stage: Triton fetches tiles by pointer in one stage (`arguments.pipeline_stages`).
        descriptors: With `one_stage`, whether lengths and strides allow descriptors for key and value, which the kernel
            of dQ fetches, and for query and dO, which that of dK and dV fetches.
    """
    if target == INTERPRETER:
        return BackwardConfig(TileConfig(64, 64, 4, 1), TileConfig(64, 64, 4, 1))
    width, masked = width_held(head_dim, head_dim_v), has_mask or has_map or by_key
    tables = _tables(target, dtype, masked)
    half = dtype != torch.float32
    if half and by_key:
        tables = (tables[0], _KEY_TABLES.get(target, tables[1]))
    one_pass = None
    if half and one_stage and not masked and target == "sm_90":
        of_query, of_key = (_DESCRIPTORS if by else _ONE_STAGE for by in descriptors)
        tables = (of_query[0], of_key[1])
    elif half and not one_stage:
        if scale_gradient and not masked:
            tables = (_QUERY_SCALE.get(target, tables[0]), tables[1])
        rows = (_ONE_PASS_MASKED if masked else _ONE_PASS).get(target, [])
        one_pass = next((row for least, row in rows if least <= width <= row.widest), None)
    query, key = (_row(rows, width) for rows in tables)
    return BackwardConfig(
        _tiles(target, query), _tiles(target, key), separate=key.how == APART,
        one_pass=None if one_pass is None else _tiles(target, one_pass),
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def query_parts(target: str, block_m: int, programs: int, seqlen_q: int, seqlen_k: int) -> tuple[int, int]:
    """In how many parts, and of how many queries each, the queries are distributed over programs of dK and dV.

    One part, unless there would be fewer programs than multiprocessors. Each part adds sums of dK and dV in float32. It
    has at least four queries a key, with which all these sums together are no larger than the query in half precision,
    and writing and reading them moves no more bytes than a pass over the query and the gradient of out.
    """
    blocks = -(-seqlen_q // block_m)
    parts = max(1, min(-(-MULTIPROCESSORS[target] // max(1, programs)), seqlen_q // (4 * seqlen_k), blocks))
    queries = -(-blocks // parts) * block_m
    return -(-seqlen_q // queries), queries


def widest(target: str, dtype: torch.dtype, *, has_mask: bool = False, has_map: bool = False) -> int:
    """The widest head dim that the table has a row for."""
    if target == INTERPRETER:
        return MAX_HEAD_DIM
    return min(rows[-1].widest for rows in _tables(target, dtype, has_mask or has_map))


def _tables(target: str, dtype: torch.dtype, masked: bool) -> tuple[list[_Row], list[_Row]]:
    require_target(target)
    if dtype == torch.float32:
        nvidia = _FLOAT32_NVIDIA_MASKED if masked else _FLOAT32_NVIDIA
        return _FLOAT32_AMD if target.startswith("gfx") else nvidia
    return (_QUERY_MASKED[target], _KEY_MASKED[target]) if masked else (_QUERY[target], _KEY[target])


def _row(rows: list[_Row], width: int) -> _Row:
    return next(row for row in rows if width <= row.widest)


def _tiles(target: str, row: _Row) -> TileConfig:
    return TileConfig(
        row.block_m, row.block_n, row.num_warps, row.num_stages, row.max_chunk,
        by_chunk=row.how == BY_CHUNK, descriptors=row.descriptors, max_registers=max_registers(target),
    )  # fmt: skip
