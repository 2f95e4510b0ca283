"""What the groups of warps of one program share: compile-time options, descriptors, rings, barriers. Plain Python."""

from __future__ import annotations

from typing import Any, NamedTuple


class Options(NamedTuple):
    """What the kernel is compiled for, beside the head dim."""

    GROUPS: int  # of warps that compute, each for ROWS queries
    BLOCK_N: int  # keys a block
    STAGES: int  # of a ring
    IS_CAUSAL: bool
    SCALE_SIGN: int  # 0: unknown
    WIDTH: int  # of the head dim, as it is held
    CHECK_KEYS: bool  # whether some query does not attend all keys of the last block


class Ring(NamedTuple):
    """Blocks of keys or values in STAGES stages: a shared tile for each chunk of the head dim, and two barriers."""

    tiles: Any  # of each chunk: [STAGES, BLOCK_N, width]
    full: Any  # [STAGES, 1]: a phase ends when the block is there
    empty: Any  # [STAGES, 1]: a phase ends when every group has read it


class Turn(NamedTuple):
    """Whose turn it is to issue products: a group waits for its own barrier and arrives at that of the next group."""

    mine: Any
    next: Any


class Work(NamedTuple):
    """The queries and keys of one program."""

    q: Any  # descriptors, one for each chunk of the head dim
    k: Any
    v: Any
    out: Any
    q_tiles: Any  # of each chunk: [GROUPS, ROWS, width]; in the end they take the output
    q_full: Any  # a phase ends when all queries are there
    k_ring: Any
    v_ring: Any
    off_b: Any
    off_h: Any
    off_h_kv: Any
    off_row: Any  # of the head, in statistics
    start_m: Any  # the first query
    blocks: Any  # of keys
    checked: Any  # of these, counted from the last: those in which some query does not attend some key
    factor: Any  # brings products to the unit of the scores
    seqlen_q: Any
    seqlen_k: Any
