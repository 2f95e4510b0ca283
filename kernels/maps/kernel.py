"""Head-averaged attention maps in Triton: in one pass where tiles hold all keys, else by a sweep over the map's keys.

Both kernels loop over the heads inside a program and add up the probabilities in registers, so a map is written once,
without atomics, and no map of a single head exists. kernels/README.md derives the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.chunks import load_chunk
from ..common.tiles import (
    ADDED_MASK,
    LOG2E,
    NO_MASK,
    PRECISION,
    batch_of,
    head_factor,
    head_in_batch,
    head_of,
    in_base_2,
    masked_scores,
    store_statistics,
    store_tile,
    tile_offsets,
    without_keys,
)


@triton.jit
def _map_program(num_heads, heads_per_program, seqlen_q, key_blocks, BLOCK_M: tl.constexpr):
    """(batch, part of the heads, first head, last head + 1, block of queries, block of keys) of this program."""
    parts = tl.cdiv(num_heads, heads_per_program)
    blocks = tl.cdiv(seqlen_q, BLOCK_M)
    pid = tl.program_id(0)
    key_block = pid % key_blocks
    block = (pid // key_blocks) % blocks
    rest = pid // key_blocks // blocks
    part = rest % parts
    first = part * heads_per_program
    return rest // parts, part, first, tl.minimum(first + heads_per_program, num_heads), block, key_block


@triton.jit
def _head_scores(
    q, k, mask, scale, off_h, start_m, start_n, seqlen_q, seqlen_k,
    D: tl.constexpr, BLOCK_M: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Scaled and masked scores of one head, for two tiles of keys; the second need not be there (N1 = 0)."""
    s0 = tl.zeros([BLOCK_M, N0], tl.float32)
    s1 = tl.zeros([BLOCK_M, N1 if N1 > 0 else 16], tl.float32)
    for i in tl.static_range(len(D.chunks)):
        q_i = load_chunk(q, i, start_m, seqlen_q, D, BLOCK_M, True, WIDE)  # [BLOCK_M, width]
        k_i = load_chunk(k, i, start_n, seqlen_k, D, N0, CHECK_KEYS and N1 == 0, WIDE)  # [N0, width]
        s0 = tl.dot(q_i, tl.trans(k_i), s0, input_precision=PRECISION)  # [BLOCK_M, N0]
        if N1 > 0:
            k_i = load_chunk(k, i, start_n + N0, seqlen_k, D, N1, CHECK_KEYS, WIDE)  # [N1, width]
            s1 = tl.dot(q_i, tl.trans(k_i), s1, input_precision=PRECISION)  # [BLOCK_M, N1]
    factor = head_factor(scale, off_h, MASK == ADDED_MASK)
    z0 = masked_scores(s0, factor, mask, start_m, start_n, seqlen_q, seqlen_k, BLOCK_M, N0, MASK, MASK_PER_QUERY,
                       IS_CAUSAL, IS_CAUSAL or (CHECK_KEYS and N1 == 0), WIDE)  # fmt: skip
    z1 = s1
    if N1 > 0:
        z1 = masked_scores(s1, factor, mask, start_m, start_n + N0, seqlen_q, seqlen_k, BLOCK_M, N1, MASK,
                           MASK_PER_QUERY, IS_CAUSAL, IS_CAUSAL or CHECK_KEYS, WIDE)  # fmt: skip
    return z0, z1


@triton.jit
def _store_values(
    out, v, p0, p1, inv, i: tl.constexpr, start_m, seqlen_q, seqlen_k,
    V: tl.constexpr, BLOCK_M: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, CHECK_KEYS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One chunk of the output's columns, finished and stored: with all keys at hand no accumulator stays behind."""
    v_i = load_chunk(v, i, 0, seqlen_k, V, N0, CHECK_KEYS and N1 == 0, WIDE)  # [N0, width]
    acc = tl.dot(p0.to(v_i.dtype), v_i, input_precision=PRECISION)  # [BLOCK_M, width]
    if N1 > 0:
        v_i = load_chunk(v, i, N0, seqlen_k, V, N1, CHECK_KEYS, WIDE)  # [N1, width]
        acc = tl.dot(p1.to(v_i.dtype), v_i, acc, input_precision=PRECISION)
    store_tile(out, acc * inv[:, None], start_m, seqlen_q, V.chunks[i].start, BLOCK_M, V.chunks[i].width, V.size, WIDE)


@triton.jit
def _store_map(
    parts, p, off_b, part, start_m, first_column, seqlen_q, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The sum of p [BLOCK_M, BLOCK_N] over a part of the heads, as far as the map has its columns.

    `first_column` is where the tile's first belongs, which may lie before the map.
    """
    ptr = parts.ptr + (part.to(tl.int64) * parts.stride_part + off_b.to(tl.int64) * parts.stride_b)
    rows = tl.arange(0, BLOCK_M)
    cols = first_column + tl.arange(0, BLOCK_N)
    inside = (start_m + rows < seqlen_q)[:, None] & ((cols >= 0) & (cols < parts.columns))[None, :]
    ptrs = ptr + tl.cast(start_m, tl.int64) * parts.stride_row + tile_offsets(rows, cols, parts.stride_row, 1, WIDE)
    tl.store(ptrs, p * parts.head_weight, mask=inside)


@triton.jit
def attention_short_keys(
    q, k, v, out, lse_ptr, entropy_ptr, parts, mask, scale, lengths,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr,
    MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr,
    IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Output, statistics and map where two tiles hold all keys. Grid: (batch * parts of the heads * query blocks,)."""
    num_heads, group, seqlen_q, seqlen_k = lengths
    off_b, part, first_head, end_head, block, _ = _map_program(num_heads, parts.heads_per_program, seqlen_q, 1, BLOCK_M)
    start_m = block * BLOCK_M
    offs_m = start_m + tl.arange(0, BLOCK_M)
    q_b = batch_of(q, off_b, IN_EIGHTS)
    k_b = batch_of(k, off_b, IN_EIGHTS)
    v_b = batch_of(v, off_b, IN_EIGHTS)
    out_b = batch_of(out, off_b, IN_EIGHTS)

    sum0 = tl.zeros([BLOCK_M, N0], tl.float32)
    sum1 = tl.zeros([BLOCK_M, N1 if N1 > 0 else 16], tl.float32)
    for off_h in tl.range(first_head, end_head, disable_licm=True):  # hoisted addresses would cost spills
        off_h_kv = off_h // group
        mask_h = mask
        if MASK != NO_MASK:
            mask_h = head_of(mask, off_b, off_h)
        z0, z1 = _head_scores(
            head_in_batch(q_b, off_h), head_in_batch(k_b, off_h_kv),
            mask_h, scale, off_h, start_m, 0, seqlen_q, seqlen_k,
            D, BLOCK_M, N0, N1, MASK, MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, WIDE,
        )  # fmt: skip

        # The softmax of [BLOCK_M, N0] and [BLOCK_M, N1] together.
        m_i = tl.max(z0, 1)
        if N1 > 0:
            m_i = tl.maximum(m_i, tl.max(z1, 1))
        x0 = z0 - m_i[:, None]
        p0 = tl.math.exp2(in_base_2(x0, MASK == ADDED_MASK))
        p1 = p0  # a placeholder where there is no second tile
        l_i = tl.sum(p0, 1)
        e_i = l_i
        if entropy_ptr is not None:
            e_i = tl.sum(p0 * x0, 1)
        if N1 > 0:
            x1 = z1 - m_i[:, None]
            p1 = tl.math.exp2(in_base_2(x1, MASK == ADDED_MASK))
            l_i += tl.sum(p1, 1)
            if entropy_ptr is not None:
                e_i += tl.sum(p1 * x1, 1)
        empty = without_keys(m_i, l_i)
        inv = tl.where(empty, 0.0, 1.0 / l_i)  # the sum is at least 1, the largest score's part
        sum0 += p0 * inv[:, None]
        if N1 > 0:
            sum1 += p1 * inv[:, None]
        if lse_ptr is not None or entropy_ptr is not None:
            off_row = (off_b.to(tl.int64) * num_heads + tl.cast(off_h, tl.int64)) * seqlen_q
            store_statistics(lse_ptr, entropy_ptr, off_row, offs_m, seqlen_q, m_i, l_i, e_i, inv, empty,
                             MASK == ADDED_MASK, LSE_IN_TWO=False)  # fmt: skip

        v_h = head_in_batch(v_b, off_h_kv)
        out_h = head_in_batch(out_b, off_h)
        for i in tl.static_range(len(V.chunks)):
            _store_values(out_h, v_h, p0, p1, inv, i, start_m, seqlen_q, seqlen_k, V, BLOCK_M, N0, N1, CHECK_KEYS,
                          WIDE)  # fmt: skip
    _store_map(parts, sum0, off_b, part, start_m, -parts.start, seqlen_q, BLOCK_M, N0, WIDE)
    if N1 > 0:
        _store_map(parts, sum1, off_b, part, start_m, N0 - parts.start, seqlen_q, BLOCK_M, N1, WIDE)


@triton.jit
def attention_map(
    q, k, lse_ptr, parts, mask, scale, lengths,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Only the map, from each row's lse. Grid: (batch * parts of the heads * query blocks * key blocks,).

    Beside an added mask, which can be larger than the sum by any power, lse comes in two numbers.
    """
    num_heads, group, seqlen_q, seqlen_k = lengths
    off_b, part, first_head, end_head, block, key_block = _map_program(
        num_heads, parts.heads_per_program, seqlen_q, tl.cdiv(parts.columns, BLOCK_N), BLOCK_M
    )
    start_m = block * BLOCK_M
    start_n = parts.start + key_block * BLOCK_N
    offs_m = start_m + tl.arange(0, BLOCK_M)
    q_b = batch_of(q, off_b, IN_EIGHTS)
    k_b = batch_of(k, off_b, IN_EIGHTS)
    if IS_CAUSAL:  # above the diagonal there is nothing to add
        end_head = tl.where(start_n < start_m + BLOCK_M, end_head, first_head)

    sum_p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for off_h in tl.range(first_head, end_head, disable_licm=True):
        mask_h = mask
        if MASK != NO_MASK:
            mask_h = head_of(mask, off_b, off_h)
        z, _ = _head_scores(
            head_in_batch(q_b, off_h), head_in_batch(k_b, off_h // group),
            mask_h, scale, off_h, start_m, start_n, seqlen_q, seqlen_k,
            D, BLOCK_M, BLOCK_N, 0, MASK, MASK_PER_QUERY, IS_CAUSAL, True, WIDE,
        )  # fmt: skip  # [BLOCK_M, BLOCK_N]
        row = (off_b.to(tl.int64) * num_heads + tl.cast(off_h, tl.int64)) * seqlen_q + offs_m  # [BLOCK_M]
        if MASK == ADDED_MASK:
            m_i = tl.load(lse_ptr + row * 2, mask=offs_m < seqlen_q, other=0.0)
            log2_l = tl.load(lse_ptr + row * 2 + 1, mask=offs_m < seqlen_q, other=0.0)
            log2_l = tl.where(log2_l == float("-inf"), 0.0, log2_l)  # a row without keys has only excluded scores
            sum_p += tl.math.exp2(in_base_2(z - m_i[:, None], MASK == ADDED_MASK) - log2_l[:, None])
        else:
            lse = tl.load(lse_ptr + row, mask=offs_m < seqlen_q, other=0.0)
            lse_log2 = tl.where(lse == float("-inf"), 0.0, lse * LOG2E)
            sum_p += tl.math.exp2(z - lse_log2[:, None])
    _store_map(parts, sum_p, off_b, part, start_m, key_block * BLOCK_N, seqlen_q, BLOCK_M, BLOCK_N, WIDE)
