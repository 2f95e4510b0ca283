"""Attention forward in Triton: online softmax, optionally with log-sum-exp, entropy and other numbers of each row.

Two kernels share everything but how a tile of keys or values is fetched: by pointers, or by tensor descriptors
(TMA, Hopper and later). kernels/README.md derives the formulas.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.chunks import load_chunk, store_chunks, zeros
from ..common.softmax import LANES, by_lane, mass_sum, online_softmax, over_lanes, square_sum
from ..common.tensors import Described
from ..common.tiles import (
    ADDED_MASK,
    EXCLUDED,
    NO_MASK,
    PRECISION,
    head_factor,
    head_of,
    keys_of_head,
    masked_scores,
    program,
    store_rows,
    store_statistics,
    without_keys,
)

PLAIN = tl.constexpr(0)
SPECIALIZED = tl.constexpr(1)
ROTATED = tl.constexpr(2)


class Sums(NamedTuple):
    """What the loop carries from block to block of keys, relative to the running maximum m.

    The sums are [BLOCK_M], or BY_LANE [BLOCK_M, LANES].
    """

    m: Any  # [BLOCK_M], in the unit of the scores
    l: Any  # the sum of p  # noqa: E741  the formulas' letter
    e: Any  # the sum of p * log(p), in the unit of the scores
    squares: Any  # the sum of p * log(p)**2, in that unit squared
    mass: Any  # the sum of p over some keys
    acc: Any  # the sum of p * v: [BLOCK_M, width] for each chunk of value's head dim


@triton.jit
def _products(
    q, k, start_n, seqlen_k, D: tl.constexpr, BLOCK_N: tl.constexpr, CHECK_KEYS: tl.constexpr,
    DESCRIPTORS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """q k^T for one block of keys."""
    k_i = load_chunk(k, 0, start_n, seqlen_k, D, BLOCK_N, CHECK_KEYS, WIDE, DESCRIPTORS)  # [BLOCK_N, width]
    s = tl.dot(q[0], tl.trans(k_i), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    for i in tl.static_range(1, len(D.chunks)):
        k_i = load_chunk(k, i, start_n, seqlen_k, D, BLOCK_N, CHECK_KEYS, WIDE, DESCRIPTORS)
        s = tl.dot(q[i], tl.trans(k_i), s, input_precision=PRECISION)
    return s


@triton.jit
def _accumulate(
    sums, s, v, factor, mask, keys, off_keys, rows, start_m, start_n, seqlen_q, seqlen_k,
    V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, SCALE_SIGN: tl.constexpr, WITH_ENTROPY: tl.constexpr,
    BY_LANE: tl.constexpr, DESCRIPTORS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The softmax of one block's products [BLOCK_M, BLOCK_N], and its values into the sums."""
    squares = sums.squares
    KEYS_DIFFER: tl.constexpr = keys.scale is not None or keys.bias is not None
    QUARTERS: tl.constexpr = MASK == ADDED_MASK or keys.bias is not None
    # for the variance any shift of the maximum has to be small enough for its square
    EXCLUDING: tl.constexpr = MASK != NO_MASK or keys.bias is not None or rows.variance is not None
    # 0: the scale is read from memory, its sign not known here
    if MASK != NO_MASK or CHECK_KEYS or KEYS_DIFFER or SCALE_SIGN == 0:
        z = masked_scores(s, factor, mask, start_m, start_n, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, MASK,
                          MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, WIDE, HAS_KEYS=True, keys=keys,
                          off_keys=off_keys)  # fmt: skip
        if BY_LANE:
            z = by_lane(z)
        p, alpha, m, l, e = online_softmax(z, 1.0, sums, False, WITH_ENTROPY, QUARTERS, EXCLUDING)  # noqa: E741
        if rows.variance is not None:
            squares = square_sum(z, 1.0, p, alpha, m, sums)
    else:  # the scale rides on the subtraction of the maximum: one FMA a score
        if BY_LANE:
            s = by_lane(s)
        p, alpha, m, l, e = online_softmax(s, factor, sums, SCALE_SIGN < 0, WITH_ENTROPY, QUARTERS,  # noqa: E741
                                           EXCLUDING)  # fmt: skip
        if rows.variance is not None:
            squares = square_sum(s, factor, p, alpha, m, sums)
    p = tl.reshape(p, (BLOCK_M, BLOCK_N))
    mass = sums.mass
    if rows.mass is not None:
        mass = mass_sum(p, alpha, sums, start_n, rows)

    acc = ()
    for i in tl.static_range(len(V.chunks)):
        v_i = load_chunk(v, i, start_n, seqlen_k, V, BLOCK_N, CHECK_KEYS, WIDE, DESCRIPTORS)  # [BLOCK_N, width]
        acc_i = tl.dot(p.to(v_i.dtype), v_i, sums.acc[i] * alpha[:, None], input_precision=PRECISION)
        acc += (acc_i,)  # [BLOCK_M, width]
    return Sums(m, l, e, squares, mass, acc)


@triton.jit
def _attend_block(
    sums, q, k, v, factor, mask, keys, off_keys, rows, start_m, start_n, seqlen_q, seqlen_k,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr,
    SCALE_SIGN: tl.constexpr, WITH_ENTROPY: tl.constexpr, BY_LANE: tl.constexpr, DESCRIPTORS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """All queries of this program against one block of keys. CHECK_KEYS: some of its keys may have to be left out."""
    s = _products(q, k, start_n, seqlen_k, D, BLOCK_N, CHECK_KEYS, DESCRIPTORS, WIDE)  # [BLOCK_M, BLOCK_N]
    return _accumulate(sums, s, v, factor, mask, keys, off_keys, rows, start_m, start_n, seqlen_q, seqlen_k, V, BLOCK_M,
                       BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, SCALE_SIGN, WITH_ENTROPY, BY_LANE,
                       DESCRIPTORS, WIDE)  # fmt: skip


@triton.jit
def _load_queries(q, start_m, seqlen_q, D: tl.constexpr, BLOCK_M: tl.constexpr, SCHEDULE: tl.constexpr,
                  WIDE: tl.constexpr):  # fmt: skip
    """[BLOCK_M, width] for each chunk of the head dim."""
    tiles = ()
    for i in tl.static_range(len(D.chunks)):
        if SCHEDULE == SPECIALIZED:
            q_i = _load_by_new_descriptor(q, start_m, seqlen_q, D.size, D.chunks[i].start, BLOCK_M, D.chunks[i].width)
        else:
            q_i = load_chunk(q, i, start_m, seqlen_q, D, BLOCK_M, True, WIDE)
        tiles += (q_i,)
    return tiles


@triton.jit
def _load_by_new_descriptor(
    q, start_m, seqlen_q, DIM: tl.constexpr, OFF_D: tl.constexpr, BLOCK_M: tl.constexpr, COLS: tl.constexpr
):
    # Warp specialization knows no pointers, and splits only a descriptor that is made in the kernel.
    queries = tl.make_tensor_descriptor(q.ptr, [seqlen_q, DIM], [q.stride_row, 1], [BLOCK_M, COLS])
    # It gives each group of warps a part of the tile, and adds where that begins to this coordinate, for whoever uses
    # the same value. start_m is used for the rows to store as well, so this has to be another value.
    first_row = tl.maximum(start_m, 0)
    return queries.load([first_row, OFF_D])


@triton.jit
def _attend_rows(
    q, k, v, out, lse_ptr, entropy_ptr, mask, keys, off_keys, rows, factor, off_row, block, seqlen_q, seqlen_k,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, SCALE_SIGN: tl.constexpr,
    LSE_IN_TWO: tl.constexpr, BY_LANE: tl.constexpr, TAIL_STAGES: tl.constexpr, DESCRIPTORS: tl.constexpr,
    SCHEDULE: tl.constexpr, FULL_BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head."""
    start_m = block * BLOCK_M
    WITH_ENTROPY: tl.constexpr = entropy_ptr is not None or rows.variance is not None  # which takes the mean as well
    QUARTERS: tl.constexpr = MASK == ADDED_MASK or keys.bias is not None
    q_i = _load_queries(q, start_m, seqlen_q, D, BLOCK_M, SCHEDULE, WIDE)
    of_rows = tl.zeros([BLOCK_M, LANES] if BY_LANE else [BLOCK_M], tl.float32)
    sums = Sums(
        m=tl.full([BLOCK_M], EXCLUDED, tl.float32),
        l=of_rows,
        e=of_rows,
        squares=of_rows,
        mass=of_rows,
        acc=zeros(V, BLOCK_M),
    )

    end_n = seqlen_k
    end_full = seqlen_k
    if IS_CAUSAL:
        end_n = tl.minimum(seqlen_k, start_m + BLOCK_M)
        end_full = tl.minimum(seqlen_k, start_m + 1)
    end_full = (end_full // BLOCK_N) * BLOCK_N
    if SCHEDULE == SPECIALIZED:  # some warps only fetch; the compiler takes one loop, not two
        for start_n in tl.range(0, end_n, BLOCK_N, warp_specialize=True):
            sums = _attend_block(sums, q_i, k, v, factor, mask, keys, off_keys, rows, start_m, start_n, seqlen_q,
                                 seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, not FULL_BLOCKS,
                                 SCALE_SIGN, WITH_ENTROPY, BY_LANE, DESCRIPTORS, WIDE)  # fmt: skip
    else:  # first the blocks whose keys every query here attends, then those on the diagonal or over the end
        if SCHEDULE == ROTATED:  # the next block's products are on their way while this one's exponentials are taken
            if end_full > 0:
                s = _products(q_i, k, 0, seqlen_k, D, BLOCK_N, False, DESCRIPTORS, WIDE)  # [BLOCK_M, BLOCK_N]
                for start_n in tl.range(0, end_full - BLOCK_N, BLOCK_N):
                    following = _products(q_i, k, start_n + BLOCK_N, seqlen_k, D, BLOCK_N, False, DESCRIPTORS, WIDE)
                    sums = _accumulate(sums, s, v, factor, mask, keys, off_keys, rows, start_m, start_n, seqlen_q,
                                       seqlen_k, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False,
                                       SCALE_SIGN, WITH_ENTROPY, BY_LANE, DESCRIPTORS, WIDE)  # fmt: skip
                    s = following
                sums = _accumulate(sums, s, v, factor, mask, keys, off_keys, rows, start_m, end_full - BLOCK_N,
                                   seqlen_q, seqlen_k, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False,
                                   SCALE_SIGN, WITH_ENTROPY, BY_LANE, DESCRIPTORS, WIDE)  # fmt: skip
        else:
            for start_n in tl.range(0, end_full, BLOCK_N):
                sums = _attend_block(sums, q_i, k, v, factor, mask, keys, off_keys, rows, start_m, start_n, seqlen_q,
                                     seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False,
                                     SCALE_SIGN, WITH_ENTROPY, BY_LANE, DESCRIPTORS, WIDE)  # fmt: skip
        for start_n in tl.range(end_full, end_n, BLOCK_N, num_stages=TAIL_STAGES):
            sums = _attend_block(sums, q_i, k, v, factor, mask, keys, off_keys, rows, start_m, start_n, seqlen_q,
                                 seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True, SCALE_SIGN,
                                 WITH_ENTROPY, BY_LANE, DESCRIPTORS, WIDE)  # fmt: skip

    sums = Sums(sums.m, over_lanes(sums.l), over_lanes(sums.e), over_lanes(sums.squares), over_lanes(sums.mass),
                sums.acc)  # fmt: skip
    # A row without keys collected p = 1 for excluded ones; an attended key would have wiped that out (alpha = 0).
    empty = without_keys(sums.m, sums.l)  # [BLOCK_M]
    l_i = tl.where(empty, 1.0, sums.l)
    inv = tl.where(empty, 0.0, 1.0 / l_i)
    offs_m = start_m + tl.arange(0, BLOCK_M)
    store_statistics(lse_ptr, entropy_ptr, off_row, offs_m, seqlen_q, sums.m, l_i, sums.e, inv, empty,
                     QUARTERS, LSE_IN_TWO)  # fmt: skip
    store_rows(rows, off_row, offs_m, seqlen_q, sums, inv, empty, QUARTERS)
    store_chunks(out, sums.acc, inv[:, None], start_m, seqlen_q, V, BLOCK_M, WIDE)


@triton.jit
def attention_forward_pointers(
    q, k, v, out, lse_ptr, entropy_ptr, rows, mask, keys, scale, lengths,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, SCALE_SIGN: tl.constexpr,
    LSE_IN_TWO: tl.constexpr, BY_LANE: tl.constexpr, TAIL_STAGES: tl.constexpr, IN_EIGHTS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Any strides. Grid: (batch * heads * blocks of queries,)."""
    off_b, off_h, off_h_kv, off_bh, block = program(
        lengths.num_heads, lengths.group, lengths.seqlen_q, BLOCK_M, LAST_FIRST=IS_CAUSAL
    )
    if MASK != NO_MASK:
        mask = head_of(mask, off_b, off_h)
    _attend_rows(
        head_of(q, off_b, off_h, IN_EIGHTS),
        head_of(k, off_b, off_h_kv, IN_EIGHTS),
        head_of(v, off_b, off_h_kv, IN_EIGHTS),
        head_of(out, off_b, off_h, IN_EIGHTS),
        lse_ptr, entropy_ptr, mask, keys, keys_of_head(keys, off_b, off_h), rows,
        head_factor(scale, off_b, off_h, MASK == ADDED_MASK or keys.bias is not None),
        off_bh.to(tl.int64) * lengths.seqlen_q, block, lengths.seqlen_q, lengths.seqlen_k,
        D, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, SCALE_SIGN, LSE_IN_TWO, BY_LANE, TAIL_STAGES,
        DESCRIPTORS=False, SCHEDULE=PLAIN, FULL_BLOCKS=False, WIDE=WIDE,
    )  # fmt: skip


@triton.jit
def attention_forward_descriptors(
    q, k0, k1, k2, v0, v1, v2, out, lse_ptr, entropy_ptr, rows, mask, keys, scale, lengths,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, SCALE_SIGN: tl.constexpr,
    LSE_IN_TWO: tl.constexpr, BY_LANE: tl.constexpr, TAIL_STAGES: tl.constexpr, IN_EIGHTS: tl.constexpr,
    SCHEDULE: tl.constexpr, FULL_BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Keys and values through descriptors over (batch, head, key, column), one for each chunk of the head dim."""
    off_b, off_h, off_h_kv, off_bh, block = program(
        lengths.num_heads, lengths.group, lengths.seqlen_q, BLOCK_M, LAST_FIRST=IS_CAUSAL
    )
    if MASK != NO_MASK:
        mask = head_of(mask, off_b, off_h)
    _attend_rows(
        head_of(q, off_b, off_h, IN_EIGHTS),
        Described((k0, k1, k2), off_b, off_h_kv),  # Triton's launcher finds no descriptor inside of a tuple
        Described((v0, v1, v2), off_b, off_h_kv),
        head_of(out, off_b, off_h, IN_EIGHTS),
        lse_ptr, entropy_ptr, mask, keys, keys_of_head(keys, off_b, off_h), rows,
        head_factor(scale, off_b, off_h, MASK == ADDED_MASK or keys.bias is not None),
        off_bh.to(tl.int64) * lengths.seqlen_q, block, lengths.seqlen_q, lengths.seqlen_k,
        D, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, SCALE_SIGN, LSE_IN_TWO, BY_LANE, TAIL_STAGES,
        DESCRIPTORS=True, SCHEDULE=SCHEDULE, FULL_BLOCKS=FULL_BLOCKS, WIDE=WIDE,
    )  # fmt: skip
