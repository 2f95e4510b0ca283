"""Which tile sizes, warps and stages the backward kernels are compiled with: a plain table, without Triton or a GPU.

Every row was compiled ahead of time for its target and found free of register spills (tests/codegen holds that).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from entropy_attn.kernels.configs import INTERPRETER, MAX_CHUNKS, MAX_HEAD_DIM, TARGETS, head_dim_chunks

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
    max_registers: int | None = None  # NVIDIA: keeps the assembler from its occasional collapse to 32 registers

    def chunks(self, head_dim: int) -> tuple[int, int, int]:
        """The widths in which the kernel holds a head dim; 0 for a chunk it does not need."""
        chunks = head_dim_chunks(head_dim, self.max_chunk)
        return (*chunks, *(0,) * (MAX_CHUNKS - len(chunks)))

    def launches(self, head_dim: int) -> list[int]:
        """The chunks of a result that each launch sums, as bits."""
        return [1 << i for i, width in enumerate(self.chunks(head_dim)) if width] if self.by_chunk else [ALL_CHUNKS]


@dataclass(frozen=True)
class BackwardConfig:
    """How the backward kernels are compiled."""

    query: TileConfig  # dQ: a program has block_m queries and passes over the keys. The rows' values: the same
    key: TileConfig  # dK and dV: a program has block_n keys and passes over the queries
    separate: bool = False  # dK and dV by programs of their own: scores once more, but half of the accumulators


def backward_config(
    target: str, head_dim: int, head_dim_v: int, dtype: torch.dtype, *, has_mask: bool = False, has_map: bool = False
) -> BackwardConfig:
    """The table's configuration for a call that ``support.backward_unsupported`` lets pass."""
    if target == INTERPRETER:
        return BackwardConfig(TileConfig(64, 64, 4, 1), TileConfig(64, 64, 4, 1))
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    raise NotImplementedError
