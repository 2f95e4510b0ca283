"""Which tile sizes, warps and stages the forward kernel is compiled with: a plain table, without Triton or a GPU.

Every row was compiled ahead of time for its target and found free of register spills (tests/codegen holds that).
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class ForwardConfig:
    """How the forward kernel is compiled."""

    block_m: int  # queries a program
    block_n: int  # keys an iteration
    num_warps: int
    num_stages: int
    descriptors: bool = False  # keys and values by tensor descriptors (sm_90 and later) instead of pointers
    split_d: bool = True  # a head dim as up to three powers of two, instead of padded to one
    max_chunk: int = MAX_HEAD_DIM  # the widest of these; 128 where wider tiles of a product spill
    max_registers: int | None = None  # NVIDIA: keeps the assembler from its occasional collapse to 32 registers

    def chunks(self, head_dim: int) -> tuple[int, int, int]:
        """The widths in which the kernel holds a head dim; 0 for a chunk it does not need."""
        chunks = head_dim_chunks(head_dim, self.max_chunk) if self.split_d else (_power_of_two(head_dim),)
        return (*chunks, *(0,) * (MAX_CHUNKS - len(chunks)))


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def head_dim_chunks(head_dim: int, max_chunk: int = MAX_HEAD_DIM) -> tuple[int, ...]:
    """At most three descending powers of two from 16 to ``max_chunk``, with the least sum that covers the head dim."""
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim % 8:
        raise ValueError(f"head_dim must be a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got {head_dim}")
    sizes = [size for size in (256, 128, 64, 32, 16) if size <= max_chunk]
    covers = (
        cover
        for count in range(1, MAX_CHUNKS + 1)
        for cover in itertools.combinations_with_replacement(sizes, count)
        if sum(cover) >= head_dim
    )
    return min(covers, key=lambda cover: (sum(cover), len(cover)))


def forward_config(
    target: str,
    head_dim: int,
    head_dim_v: int,
    dtype: torch.dtype,
    *,
    seqlen_k: int | None = None,
    has_mask: bool = False,
    is_causal: bool = False,
    return_entropy: bool = False,
    descriptors: bool = True,
) -> ForwardConfig:
    """The configuration for a call. ``descriptors=False``: the tensors' strides do not allow them."""
    if target == INTERPRETER:
        return ForwardConfig(64, 64, 4, 1)
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    config = ForwardConfig(128, 64, 8, 2)
    return replace(config, max_registers=None if target.startswith("gfx") else 255)
