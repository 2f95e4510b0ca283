"""Head-averaged attention maps in Triton: in one pass where tiles hold all keys, else by a sweep over those asked for.

Both kernels loop over the heads inside a program and add up the probabilities in registers, so a map is written once,
without atomics, and no map of a single head exists. README.md beside this file derives the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.tiles import (
    ADDED_MASK,
    EMPTY_ROW,
    LN2,
    LOG2E,
    NO_MASK,
    PRECISION,
    head_factor,
    in_base_2,
    in_eights,
    in_nats,
    load_rows,
    masked_scores,
    store_rows,
    tile_offsets,
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
def _add_products(
    s0, s1, q_ptr, k_ptr, start_m, start_n, stride_qm, stride_qd, stride_kn, stride_kd, seqlen_q, seqlen_k,
    OFF_D: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, CHECK_KEYS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One chunk of the head dim for both tiles of keys; the second need not be there (N1 = 0)."""
    q = load_rows(q_ptr, 0, 0, start_m, stride_qm, stride_qd, seqlen_q,
                   OFF_D, BLOCK_M, WIDTH, HEAD_DIM, True, False, WIDE)  # fmt: skip
    k = load_rows(k_ptr, 0, 0, start_n, stride_kn, stride_kd, seqlen_k,
                   OFF_D, N0, WIDTH, HEAD_DIM, CHECK_KEYS and N1 == 0, False, WIDE)  # fmt: skip
    s0 = tl.dot(q, tl.trans(k), s0, input_precision=PRECISION)  # [BLOCK_M, N0]
    if N1 > 0:
        k = load_rows(k_ptr, 0, 0, start_n + N0, stride_kn, stride_kd, seqlen_k,
                       OFF_D, N1, WIDTH, HEAD_DIM, CHECK_KEYS, False, WIDE)  # fmt: skip
        s1 = tl.dot(q, tl.trans(k), s1, input_precision=PRECISION)  # [BLOCK_M, N1]
    return s0, s1


@triton.jit
def _head_scores(
    q_ptr, k_ptr, mask_ptr, scale_ptr, score_scale, off_h, start_m, start_n,
    stride_qm, stride_qd, stride_kn, stride_kd, stride_mask_m, stride_mask_n, stride_scale, seqlen_q, seqlen_k,
    HEAD_DIM: tl.constexpr, FULL_D: tl.constexpr, TAIL_D: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, CHECK_KEYS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Scaled and masked scores of one head, at whose first elements the pointers are; two tiles of keys."""
    s0 = tl.zeros([BLOCK_M, N0], tl.float32)
    s1 = tl.zeros([BLOCK_M, N1 if N1 > 0 else 16], tl.float32)
    for off_d in tl.static_range(0, FULL_D, CHUNK):
        s0, s1 = _add_products(s0, s1, q_ptr, k_ptr, start_m, start_n, stride_qm, stride_qd, stride_kn, stride_kd,
                               seqlen_q, seqlen_k, off_d, CHUNK, HEAD_DIM, BLOCK_M, N0, N1, CHECK_KEYS,
                               WIDE)  # fmt: skip
    if TAIL_D > 0:
        s0, s1 = _add_products(s0, s1, q_ptr, k_ptr, start_m, start_n, stride_qm, stride_qd, stride_kn, stride_kd,
                               seqlen_q, seqlen_k, FULL_D, TAIL_D, HEAD_DIM, BLOCK_M, N0, N1, CHECK_KEYS,
                               WIDE)  # fmt: skip
    factor = head_factor(score_scale, scale_ptr, off_h, stride_scale, SCALE_TENSOR, MASK)
    z0 = masked_scores(s0, factor, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                        BLOCK_M, N0, MASK, MASK_PER_QUERY, IS_CAUSAL, IS_CAUSAL or (CHECK_KEYS and N1 == 0),
                        WIDE)  # fmt: skip
    z1 = s1
    if N1 > 0:
        z1 = masked_scores(s1, factor, mask_ptr, start_m, start_n + N0, stride_mask_m, stride_mask_n, seqlen_q,
                            seqlen_k, BLOCK_M, N1, MASK, MASK_PER_QUERY, IS_CAUSAL, IS_CAUSAL or CHECK_KEYS,
                            WIDE)  # fmt: skip
    return z0, z1


@triton.jit
def _store_map(
    map_ptr, p, start_m, first_column, stride_map_m, seqlen_q, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The tile's columns from ``first_column`` on, which may lie before the map, as far as the map has them."""
    rows = tl.arange(0, BLOCK_M)
    cols = first_column + tl.arange(0, BLOCK_N)
    inside = (start_m + rows < seqlen_q)[:, None] & ((cols >= 0) & (cols < columns))[None, :]
    ptrs = map_ptr + tl.cast(start_m, tl.int64) * stride_map_m + tile_offsets(rows, cols, stride_map_m, 1, WIDE)
    tl.store(ptrs, p, mask=inside)


@triton.jit
def _store_values(
    out_ptr, p0, p1, inv, v_ptr, start_m, stride_vn, stride_vd, stride_om, seqlen_q, seqlen_k,
    OFF_D: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_M: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, CHECK_KEYS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One chunk of the output's columns, finished and stored: with all keys at hand no accumulator stays behind."""
    v = load_rows(v_ptr, 0, 0, 0, stride_vn, stride_vd, seqlen_k,
                   OFF_D, N0, WIDTH, HEAD_DIM_V, CHECK_KEYS and N1 == 0, False, WIDE)  # fmt: skip
    acc = tl.dot(p0.to(v.dtype), v, input_precision=PRECISION)  # [BLOCK_M, WIDTH]
    if N1 > 0:
        v = load_rows(v_ptr, 0, 0, N0, stride_vn, stride_vd, seqlen_k,
                       OFF_D, N1, WIDTH, HEAD_DIM_V, CHECK_KEYS, False, WIDE)  # fmt: skip
        acc = tl.dot(p1.to(v.dtype), v, acc, input_precision=PRECISION)
    store_rows(out_ptr, acc * inv[:, None], start_m, stride_om, 1, seqlen_q, OFF_D, BLOCK_M, WIDTH, HEAD_DIM_V, WIDE)


@triton.jit
def attention_short_keys(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, entropy_ptr, map_ptr, mask_ptr, scale_ptr, score_scale, head_weight,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_ob, stride_oh, stride_om,
    stride_map_p, stride_map_b, stride_map_m,
    stride_mask_b, stride_mask_h, stride_mask_m, stride_mask_n, stride_scale,
    num_heads, group, heads_per_program, seqlen_q, seqlen_k, map_start, map_columns,
    HEAD_DIM: tl.constexpr, FULL_D: tl.constexpr, TAIL_D: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, FULL_V: tl.constexpr, TAIL_V: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, RETURN_LSE: tl.constexpr, RETURN_ENTROPY: tl.constexpr,
    CHECK_KEYS: tl.constexpr, STRIDES_IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Output, statistics and map where two tiles hold all keys. Grid: (batch * parts of the heads * query blocks,)."""
    off_b, part, first_head, end_head, block, _ = _map_program(num_heads, heads_per_program, seqlen_q, 1, BLOCK_M)
    start_m = block * BLOCK_M
    offs_m = start_m + tl.arange(0, BLOCK_M)
    b = off_b.to(tl.int64)
    q_ptr += b * in_eights(stride_qb, STRIDES_IN_EIGHTS)
    k_ptr += b * in_eights(stride_kb, STRIDES_IN_EIGHTS)
    v_ptr += b * in_eights(stride_vb, STRIDES_IN_EIGHTS)
    out_ptr += b * in_eights(stride_ob, STRIDES_IN_EIGHTS)

    sum0 = tl.zeros([BLOCK_M, N0], tl.float32)
    sum1 = tl.zeros([BLOCK_M, N1 if N1 > 0 else 16], tl.float32)
    for off_h in tl.range(first_head, end_head, disable_licm=True):  # hoisted addresses would cost spills
        h = tl.cast(off_h, tl.int64)
        h_kv = tl.cast(off_h // group, tl.int64)
        mask_h_ptr = mask_ptr
        if MASK != NO_MASK:
            mask_h_ptr = mask_ptr + b * stride_mask_b + h * stride_mask_h
        z0, z1 = _head_scores(
            q_ptr + h * in_eights(stride_qh, STRIDES_IN_EIGHTS),
            k_ptr + h_kv * in_eights(stride_kh, STRIDES_IN_EIGHTS),
            mask_h_ptr, scale_ptr, score_scale, off_h, start_m, 0,
            in_eights(stride_qm, STRIDES_IN_EIGHTS), stride_qd, in_eights(stride_kn, STRIDES_IN_EIGHTS), stride_kd,
            stride_mask_m, stride_mask_n, stride_scale, seqlen_q, seqlen_k,
            HEAD_DIM, FULL_D, TAIL_D, CHUNK, BLOCK_M, N0, N1,
            MASK, MASK_PER_QUERY, IS_CAUSAL, SCALE_TENSOR, CHECK_KEYS, WIDE,
        )  # fmt: skip

        m_i = tl.max(z0, 1)
        if N1 > 0:
            m_i = tl.maximum(m_i, tl.max(z1, 1))
        x0 = z0 - m_i[:, None]
        p0 = tl.math.exp2(in_base_2(x0, MASK))
        p1 = p0  # a placeholder where there is no second tile
        l_i = tl.sum(p0, 1)
        e_i = l_i
        if RETURN_ENTROPY:
            e_i = tl.sum(p0 * x0, 1)
        if N1 > 0:
            x1 = z1 - m_i[:, None]
            p1 = tl.math.exp2(in_base_2(x1, MASK))
            l_i += tl.sum(p1, 1)
            if RETURN_ENTROPY:
                e_i += tl.sum(p1 * x1, 1)
        empty = (m_i < EMPTY_ROW) & (l_i == l_i)  # the maximum passes over NaN, the sum does not
        inv = tl.where(empty, 0.0, 1.0 / l_i)  # the sum is at least 1, the largest score's part
        sum0 += p0 * inv[:, None]
        if N1 > 0:
            sum1 += p1 * inv[:, None]
        if RETURN_LSE or RETURN_ENTROPY:
            log2_l = tl.math.log2(l_i)
            off_row = (b * num_heads + h) * seqlen_q
            if RETURN_LSE:
                lse = tl.where(empty, float("-inf"), in_nats(m_i, MASK) + log2_l * LN2)
                tl.store(lse_ptr + off_row + offs_m, lse, mask=offs_m < seqlen_q)
            if RETURN_ENTROPY:
                entropy = log2_l * LN2 - in_nats(e_i * inv, MASK)
                entropy = tl.where(empty | (entropy <= 0.0), 0.0, entropy)  # rounding; a NaN stays one
                tl.store(entropy_ptr + off_row + offs_m, entropy, mask=offs_m < seqlen_q)

        v_h_ptr = v_ptr + h_kv * in_eights(stride_vh, STRIDES_IN_EIGHTS)
        out_h_ptr = out_ptr + h * in_eights(stride_oh, STRIDES_IN_EIGHTS)
        for off_d in tl.static_range(0, FULL_V, CHUNK):
            _store_values(
                out_h_ptr, p0, p1, inv, v_h_ptr, start_m, in_eights(stride_vn, STRIDES_IN_EIGHTS), stride_vd,
                in_eights(stride_om, STRIDES_IN_EIGHTS), seqlen_q, seqlen_k,
                off_d, CHUNK, HEAD_DIM_V, BLOCK_M, N0, N1, CHECK_KEYS, WIDE,
            )  # fmt: skip
        if TAIL_V > 0:
            _store_values(
                out_h_ptr, p0, p1, inv, v_h_ptr, start_m, in_eights(stride_vn, STRIDES_IN_EIGHTS), stride_vd,
                in_eights(stride_om, STRIDES_IN_EIGHTS), seqlen_q, seqlen_k,
                FULL_V, TAIL_V, HEAD_DIM_V, BLOCK_M, N0, N1, CHECK_KEYS, WIDE,
            )  # fmt: skip
    map_ptr += part.to(tl.int64) * stride_map_p + b * stride_map_b
    _store_map(map_ptr, sum0 * head_weight, start_m, -map_start, stride_map_m, seqlen_q, map_columns,
               BLOCK_M, N0, WIDE)  # fmt: skip
    if N1 > 0:
        _store_map(map_ptr, sum1 * head_weight, start_m, N0 - map_start, stride_map_m, seqlen_q, map_columns,
                   BLOCK_M, N1, WIDE)  # fmt: skip


@triton.jit
def attention_map(
    q_ptr, k_ptr, lse_ptr, map_ptr, mask_ptr, scale_ptr, score_scale, head_weight,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_map_p, stride_map_b, stride_map_m,
    stride_mask_b, stride_mask_h, stride_mask_m, stride_mask_n, stride_scale,
    num_heads, group, heads_per_program, seqlen_q, seqlen_k, map_start, map_columns,
    HEAD_DIM: tl.constexpr, FULL_D: tl.constexpr, TAIL_D: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, STRIDES_IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The map alone, from each row's lse. Grid: (batch * parts of the heads * query blocks * key blocks,).

    Beside an added mask, which can be larger than the sum by any power, lse comes in two numbers.
    """
    key_blocks = tl.cdiv(map_columns, BLOCK_N)
    off_b, part, first_head, end_head, block, key_block = _map_program(
        num_heads, heads_per_program, seqlen_q, key_blocks, BLOCK_M
    )
    start_m = block * BLOCK_M
    start_n = map_start + key_block * BLOCK_N
    offs_m = start_m + tl.arange(0, BLOCK_M)
    b = off_b.to(tl.int64)
    q_ptr += b * in_eights(stride_qb, STRIDES_IN_EIGHTS)
    k_ptr += b * in_eights(stride_kb, STRIDES_IN_EIGHTS)
    if IS_CAUSAL:  # above the diagonal there is nothing to add
        end_head = tl.where(start_n < start_m + BLOCK_M, end_head, first_head)

    sum_p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for off_h in tl.range(first_head, end_head, disable_licm=True):
        h = tl.cast(off_h, tl.int64)
        h_kv = tl.cast(off_h // group, tl.int64)
        mask_h_ptr = mask_ptr
        if MASK != NO_MASK:
            mask_h_ptr = mask_ptr + b * stride_mask_b + h * stride_mask_h
        z, _ = _head_scores(
            q_ptr + h * in_eights(stride_qh, STRIDES_IN_EIGHTS),
            k_ptr + h_kv * in_eights(stride_kh, STRIDES_IN_EIGHTS),
            mask_h_ptr, scale_ptr, score_scale, off_h, start_m, start_n,
            in_eights(stride_qm, STRIDES_IN_EIGHTS), stride_qd, in_eights(stride_kn, STRIDES_IN_EIGHTS), stride_kd,
            stride_mask_m, stride_mask_n, stride_scale, seqlen_q, seqlen_k,
            HEAD_DIM, FULL_D, TAIL_D, CHUNK, BLOCK_M, BLOCK_N, 0,
            MASK, MASK_PER_QUERY, IS_CAUSAL, SCALE_TENSOR, True, WIDE,
        )  # fmt: skip
        row = (b * num_heads + h) * seqlen_q + offs_m
        if MASK == ADDED_MASK:
            m_i = tl.load(lse_ptr + row * 2, mask=offs_m < seqlen_q, other=0.0)
            log2_l = tl.load(lse_ptr + row * 2 + 1, mask=offs_m < seqlen_q, other=0.0)
            log2_l = tl.where(log2_l == float("-inf"), 0.0, log2_l)  # a row without keys has only excluded scores
            sum_p += tl.math.exp2(in_base_2(z - m_i[:, None], MASK) - log2_l[:, None])
        else:
            lse = tl.load(lse_ptr + row, mask=offs_m < seqlen_q, other=0.0)
            lse_log2 = tl.where(lse == float("-inf"), 0.0, lse * LOG2E)
            sum_p += tl.math.exp2(z - lse_log2[:, None])
    map_ptr += part.to(tl.int64) * stride_map_p + b * stride_map_b
    _store_map(map_ptr, sum_p * head_weight, start_m, key_block * BLOCK_N, stride_map_m, seqlen_q, map_columns,
               BLOCK_M, BLOCK_N, WIDE)  # fmt: skip
