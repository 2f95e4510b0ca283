"""Attention forward in Triton: online softmax in base 2, optionally with each row's log-sum-exp and entropy.

Two kernels share everything but how a tile of keys or values is fetched: by pointers, or by tensor descriptors
(TMA, Hopper and later). README.md beside this file derives the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.tiles import (
    EMPTY_ROW,
    EXCLUDED,
    LN2,
    NO_MASK,
    PRECISION,
    VANISHED,
    head_factor,
    in_base_2,
    in_eights,
    in_nats,
    load_rows,
    masked_scores,
    program,
    store_rows,
)

PLAIN = tl.constexpr(0)
SPECIALIZED = tl.constexpr(1)
ROTATED = tl.constexpr(2)


@triton.jit
def _online_softmax(s, factor, m_i, l_i, e_i, NEGATIVE: tl.constexpr, RETURN_ENTROPY: tl.constexpr, MASK: tl.constexpr):
    """One block of the recurrence. The maximum of s * factor is that of s times factor: of -s where factor is NEGATIVE.

    Returns the unnormalised probabilities, the correction of what was accumulated before, and the new statistics.
    ``e_i`` is the sum of p * log(p), in the unit of the scores, with log(p) = score - m_i: shifting it with m_i keeps
    it accurate for any logits.
    """
    extreme = tl.min(s, 1) if NEGATIVE else tl.max(s, 1)
    m_new = tl.maximum(m_i, extreme * factor)
    x = s * factor - m_new[:, None]
    p = tl.math.exp2(in_base_2(x, MASK))
    shift = m_i - m_new
    alpha = tl.math.exp2(in_base_2(shift, MASK))
    if RETURN_ENTROPY:
        if MASK != NO_MASK:  # from EXCLUDED, after a block without an attended key
            shift = tl.maximum(shift, VANISHED)
        e_i = alpha * (e_i + shift * l_i) + tl.sum(p * x, 1)
    l_i = l_i * alpha + tl.sum(p, 1)
    return p, alpha, m_new, l_i, e_i


@triton.jit
def _products(
    q0, q1, q2, k0_src, k1_src, k2_src, off_b, off_h_kv, start_n, stride_kn, stride_kd, seqlen_k,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_N: tl.constexpr,
    CHECK_KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Queries times one block of keys, [BLOCK_M, BLOCK_N]."""
    k0 = load_rows(k0_src, off_b, off_h_kv, start_n, stride_kn, stride_kd, seqlen_k,
                   0, BLOCK_N, D0, HEAD_DIM, CHECK_KEYS, DESCRIPTORS, WIDE)  # fmt: skip
    s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if D1 > 0:
        k1 = load_rows(k1_src, off_b, off_h_kv, start_n, stride_kn, stride_kd, seqlen_k,
                       D0, BLOCK_N, D1, HEAD_DIM, CHECK_KEYS, DESCRIPTORS, WIDE)  # fmt: skip
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
    if D2 > 0:
        k2 = load_rows(k2_src, off_b, off_h_kv, start_n, stride_kn, stride_kd, seqlen_k,
                       D0 + D1, BLOCK_N, D2, HEAD_DIM, CHECK_KEYS, DESCRIPTORS, WIDE)  # fmt: skip
        s = tl.dot(q2, tl.trans(k2), s, input_precision=PRECISION)
    return s


@triton.jit
def _accumulate(
    s, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
    factor, mask_ptr, off_b, off_h_kv, start_m, start_n,
    stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, SCALE_TENSOR: tl.constexpr, NEGATIVE: tl.constexpr,
    RETURN_ENTROPY: tl.constexpr, DESCRIPTORS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The softmax of one block, and its values into the sums."""
    if MASK != NO_MASK or CHECK_KEYS or SCALE_TENSOR:  # a scale read from memory has a sign that is not known here
        z = masked_scores(s, factor, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                          BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, WIDE)  # fmt: skip
        p, alpha, m_i, l_i, e_i = _online_softmax(z, 1.0, m_i, l_i, e_i, False, RETURN_ENTROPY, MASK)
    else:  # the scale rides on the subtraction of the maximum: one FMA a score
        p, alpha, m_i, l_i, e_i = _online_softmax(s, factor, m_i, l_i, e_i, NEGATIVE, RETURN_ENTROPY, MASK)

    v0 = load_rows(v0_src, off_b, off_h_kv, start_n, stride_vn, stride_vd, seqlen_k,
                   0, BLOCK_N, V0, HEAD_DIM_V, CHECK_KEYS, DESCRIPTORS, WIDE)  # fmt: skip
    p = p.to(v0.dtype)
    acc0 = tl.dot(p, v0, acc0 * alpha[:, None], input_precision=PRECISION)
    if V1 > 0:
        v1 = load_rows(v1_src, off_b, off_h_kv, start_n, stride_vn, stride_vd, seqlen_k,
                       V0, BLOCK_N, V1, HEAD_DIM_V, CHECK_KEYS, DESCRIPTORS, WIDE)  # fmt: skip
        acc1 = tl.dot(p, v1, acc1 * alpha[:, None], input_precision=PRECISION)
    if V2 > 0:
        v2 = load_rows(v2_src, off_b, off_h_kv, start_n, stride_vn, stride_vd, seqlen_k,
                       V0 + V1, BLOCK_N, V2, HEAD_DIM_V, CHECK_KEYS, DESCRIPTORS, WIDE)  # fmt: skip
        acc2 = tl.dot(p, v2, acc2 * alpha[:, None], input_precision=PRECISION)
    return acc0, acc1, acc2, m_i, l_i, e_i


@triton.jit
def _attend_block(
    q0, q1, q2, k0_src, k1_src, k2_src, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
    factor, mask_ptr, off_b, off_h_kv, start_m, start_n,
    stride_kn, stride_kd, stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, SCALE_TENSOR: tl.constexpr, NEGATIVE: tl.constexpr,
    RETURN_ENTROPY: tl.constexpr, DESCRIPTORS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All queries of this program against one block of keys. CHECK_KEYS: some of its keys may have to be left out."""
    s = _products(
        q0, q1, q2, k0_src, k1_src, k2_src, off_b, off_h_kv, start_n, stride_kn, stride_kd, seqlen_k,
        HEAD_DIM, D0, D1, D2, BLOCK_N, CHECK_KEYS, DESCRIPTORS, WIDE,
    )  # fmt: skip
    return _accumulate(
        s, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
        factor, mask_ptr, off_b, off_h_kv, start_m, start_n,
        stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
        HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
        IS_CAUSAL, CHECK_KEYS, SCALE_TENSOR, NEGATIVE, RETURN_ENTROPY, DESCRIPTORS, WIDE,
    )  # fmt: skip


@triton.jit
def _load_queries(
    q_ptr, start_m, stride_qm, stride_qd, seqlen_q, OFF_D: tl.constexpr, BLOCK_M: tl.constexpr, COLS: tl.constexpr,
    HEAD_DIM: tl.constexpr, SCHEDULE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    if SCHEDULE == SPECIALIZED:  # whose compiler knows no pointers, and splits only a descriptor that is made here
        queries = tl.make_tensor_descriptor(q_ptr, [seqlen_q, HEAD_DIM], [stride_qm, 1], [BLOCK_M, COLS])
        # It gives each group of warps a part of the tile, and adds where that begins to this coordinate, for whoever
        # uses the same value. start_m is used for the rows to store as well, so this is a value of its own.
        first_row = tl.maximum(start_m, 0)
        return queries.load([first_row, OFF_D])
    else:
        return load_rows(q_ptr, 0, 0, start_m, stride_qm, stride_qd, seqlen_q,
                         OFF_D, BLOCK_M, COLS, HEAD_DIM, True, False, WIDE)  # fmt: skip


@triton.jit
def _attend_rows(
    q_ptr, k0_src, k1_src, k2_src, v0_src, v1_src, v2_src, out_ptr, lse_ptr, entropy_ptr, mask_ptr, scale_ptr,
    score_scale, off_b, off_h, off_h_kv, off_row, block,
    stride_qm, stride_qd, stride_kn, stride_kd, stride_vn, stride_vd, stride_om,
    stride_mask_m, stride_mask_n, stride_scale, seqlen_q, seqlen_k,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, NEGATIVE: tl.constexpr, RETURN_LSE: tl.constexpr,
    RETURN_ENTROPY: tl.constexpr, TAIL_STAGES: tl.constexpr, DESCRIPTORS: tl.constexpr,
    SCHEDULE: tl.constexpr, FULL_BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head; q_ptr, out_ptr and mask_ptr point to that head's first element."""
    start_m = block * BLOCK_M
    q0 = _load_queries(q_ptr, start_m, stride_qm, stride_qd, seqlen_q, 0, BLOCK_M, D0, HEAD_DIM, SCHEDULE, WIDE)
    q1 = q0  # placeholders for chunks that this head dim does not have
    q2 = q0
    if D1 > 0:
        q1 = _load_queries(q_ptr, start_m, stride_qm, stride_qd, seqlen_q, D0, BLOCK_M, D1, HEAD_DIM, SCHEDULE, WIDE)
    if D2 > 0:
        q2 = _load_queries(q_ptr, start_m, stride_qm, stride_qd, seqlen_q, D0 + D1, BLOCK_M, D2, HEAD_DIM, SCHEDULE,
                           WIDE)  # fmt: skip

    factor = head_factor(score_scale, scale_ptr, off_h, stride_scale, SCALE_TENSOR, MASK)

    m_i = tl.full([BLOCK_M], EXCLUDED, tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    e_i = tl.zeros([BLOCK_M], tl.float32)
    acc0 = tl.zeros([BLOCK_M, V0], tl.float32)
    acc1 = tl.zeros([BLOCK_M, V1 if V1 > 0 else 16], tl.float32)
    acc2 = tl.zeros([BLOCK_M, V2 if V2 > 0 else 16], tl.float32)

    end_n = seqlen_k
    end_full = seqlen_k
    if IS_CAUSAL:
        end_n = tl.minimum(seqlen_k, start_m + BLOCK_M)
        end_full = tl.minimum(seqlen_k, start_m + 1)
    end_full = (end_full // BLOCK_N) * BLOCK_N
    if SCHEDULE == SPECIALIZED:  # the compiler gives the fetching to warps of their own, in one loop and no second
        for start_n in tl.range(0, end_n, BLOCK_N, warp_specialize=True):
            acc0, acc1, acc2, m_i, l_i, e_i = _attend_block(
                q0, q1, q2, k0_src, k1_src, k2_src, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
                factor, mask_ptr, off_b, off_h_kv, start_m, start_n,
                stride_kn, stride_kd, stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
                IS_CAUSAL, not FULL_BLOCKS, SCALE_TENSOR, NEGATIVE, RETURN_ENTROPY, DESCRIPTORS, WIDE,
            )  # fmt: skip
    else:  # first the blocks whose keys every query here attends, then those on the diagonal or over the end
        if SCHEDULE == ROTATED:  # the next block's products are on their way while this one's exponentials are taken
            if end_full > 0:
                s = _products(
                    q0, q1, q2, k0_src, k1_src, k2_src, off_b, off_h_kv, 0, stride_kn, stride_kd, seqlen_k,
                    HEAD_DIM, D0, D1, D2, BLOCK_N, False, DESCRIPTORS, WIDE,
                )  # fmt: skip
                for start_n in tl.range(0, end_full - BLOCK_N, BLOCK_N):
                    following = _products(
                        q0, q1, q2, k0_src, k1_src, k2_src, off_b, off_h_kv, start_n + BLOCK_N,
                        stride_kn, stride_kd, seqlen_k,
                        HEAD_DIM, D0, D1, D2, BLOCK_N, False, DESCRIPTORS, WIDE,
                    )  # fmt: skip
                    acc0, acc1, acc2, m_i, l_i, e_i = _accumulate(
                        s, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
                        factor, mask_ptr, off_b, off_h_kv, start_m, start_n,
                        stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                        HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
                        IS_CAUSAL, False, SCALE_TENSOR, NEGATIVE, RETURN_ENTROPY, DESCRIPTORS, WIDE,
                    )  # fmt: skip
                    s = following
                acc0, acc1, acc2, m_i, l_i, e_i = _accumulate(
                    s, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
                    factor, mask_ptr, off_b, off_h_kv, start_m, end_full - BLOCK_N,
                    stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                    HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
                    IS_CAUSAL, False, SCALE_TENSOR, NEGATIVE, RETURN_ENTROPY, DESCRIPTORS, WIDE,
                )  # fmt: skip
        else:
            for start_n in tl.range(0, end_full, BLOCK_N):
                acc0, acc1, acc2, m_i, l_i, e_i = _attend_block(
                    q0, q1, q2, k0_src, k1_src, k2_src, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
                    factor, mask_ptr, off_b, off_h_kv, start_m, start_n,
                    stride_kn, stride_kd, stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                    HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
                    IS_CAUSAL, False, SCALE_TENSOR, NEGATIVE, RETURN_ENTROPY, DESCRIPTORS, WIDE,
                )  # fmt: skip
        for start_n in tl.range(end_full, end_n, BLOCK_N, num_stages=TAIL_STAGES):
            acc0, acc1, acc2, m_i, l_i, e_i = _attend_block(
                q0, q1, q2, k0_src, k1_src, k2_src, v0_src, v1_src, v2_src, acc0, acc1, acc2, m_i, l_i, e_i,
                factor, mask_ptr, off_b, off_h_kv, start_m, start_n,
                stride_kn, stride_kd, stride_vn, stride_vd, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
                IS_CAUSAL, True, SCALE_TENSOR, NEGATIVE, RETURN_ENTROPY, DESCRIPTORS, WIDE,
            )  # fmt: skip

    # An empty row collected p = 1 for its excluded keys; every attended key would have wiped that out (alpha = 0). The
    # maximum passes over NaN, the sum does not: a row of NaN is not empty.
    empty = (m_i < EMPTY_ROW) & (l_i == l_i)
    l_i = tl.where(empty, 1.0, l_i)
    inv = tl.where(empty, 0.0, 1.0 / l_i)
    log2_l = tl.math.log2(l_i)
    offs_m = start_m + tl.arange(0, BLOCK_M)
    if RETURN_LSE == 1:
        lse = tl.where(empty, float("-inf"), in_nats(m_i, MASK) + log2_l * LN2)
        tl.store(lse_ptr + off_row + offs_m, lse, mask=offs_m < seqlen_q)
    if RETURN_LSE == 2:
        pairs = lse_ptr + (off_row + offs_m) * 2
        tl.store(pairs, tl.where(empty, 0.0, m_i), mask=offs_m < seqlen_q)
        tl.store(pairs + 1, tl.where(empty, float("-inf"), log2_l), mask=offs_m < seqlen_q)
    if RETURN_ENTROPY:
        entropy = log2_l * LN2 - in_nats(e_i * inv, MASK)
        entropy = tl.where(empty | (entropy <= 0.0), 0.0, entropy)  # rounding; a NaN stays one
        tl.store(entropy_ptr + off_row + offs_m, entropy, mask=offs_m < seqlen_q)
    store_rows(out_ptr, acc0 * inv[:, None], start_m, stride_om, 1, seqlen_q, 0, BLOCK_M, V0, HEAD_DIM_V, WIDE)
    if V1 > 0:
        store_rows(out_ptr, acc1 * inv[:, None], start_m, stride_om, 1, seqlen_q, V0, BLOCK_M, V1, HEAD_DIM_V, WIDE)
    if V2 > 0:
        store_rows(out_ptr, acc2 * inv[:, None], start_m, stride_om, 1, seqlen_q, V0 + V1, BLOCK_M, V2, HEAD_DIM_V,
                   WIDE)  # fmt: skip


@triton.jit
def attention_forward_pointers(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, entropy_ptr, mask_ptr, scale_ptr, score_scale,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_ob, stride_oh, stride_om,
    stride_mask_b, stride_mask_h, stride_mask_m, stride_mask_n, stride_scale,
    num_heads, group, seqlen_q, seqlen_k,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, NEGATIVE: tl.constexpr, RETURN_LSE: tl.constexpr,
    RETURN_ENTROPY: tl.constexpr, TAIL_STAGES: tl.constexpr,
    STRIDES_IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Any strides. Grid: (batch * heads * blocks of queries,)."""
    off_b, off_h, off_h_kv, off_bh, block = program(num_heads, group, seqlen_q, BLOCK_M, IS_CAUSAL)
    b = off_b.to(tl.int64)
    h = off_h.to(tl.int64)
    h_kv = off_h_kv.to(tl.int64)
    q_ptr += b * in_eights(stride_qb, STRIDES_IN_EIGHTS) + h * in_eights(stride_qh, STRIDES_IN_EIGHTS)
    k_ptr += b * in_eights(stride_kb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_kh, STRIDES_IN_EIGHTS)
    v_ptr += b * in_eights(stride_vb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_vh, STRIDES_IN_EIGHTS)
    out_ptr += b * in_eights(stride_ob, STRIDES_IN_EIGHTS) + h * in_eights(stride_oh, STRIDES_IN_EIGHTS)
    if MASK != NO_MASK:
        mask_ptr += b * stride_mask_b + h * stride_mask_h
    _attend_rows(
        q_ptr, k_ptr, k_ptr, k_ptr, v_ptr, v_ptr, v_ptr, out_ptr, lse_ptr, entropy_ptr, mask_ptr, scale_ptr,
        score_scale, off_b, off_h, off_h_kv, off_bh.to(tl.int64) * seqlen_q, block,
        in_eights(stride_qm, STRIDES_IN_EIGHTS), stride_qd,
        in_eights(stride_kn, STRIDES_IN_EIGHTS), stride_kd,
        in_eights(stride_vn, STRIDES_IN_EIGHTS), stride_vd,
        in_eights(stride_om, STRIDES_IN_EIGHTS),
        stride_mask_m, stride_mask_n, stride_scale, seqlen_q, seqlen_k,
        HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
        IS_CAUSAL, SCALE_TENSOR, NEGATIVE, RETURN_LSE, RETURN_ENTROPY, TAIL_STAGES, False,
        PLAIN, False, WIDE,
    )  # fmt: skip


@triton.jit
def attention_forward_descriptors(
    q_ptr, k0_desc, k1_desc, k2_desc, v0_desc, v1_desc, v2_desc,
    out_ptr, lse_ptr, entropy_ptr, mask_ptr, scale_ptr, score_scale,
    stride_qb, stride_qh, stride_qm, stride_qd, stride_ob, stride_oh, stride_om,
    stride_mask_b, stride_mask_h, stride_mask_m, stride_mask_n, stride_scale,
    num_heads, group, seqlen_q, seqlen_k,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, NEGATIVE: tl.constexpr, RETURN_LSE: tl.constexpr,
    RETURN_ENTROPY: tl.constexpr, TAIL_STAGES: tl.constexpr,
    STRIDES_IN_EIGHTS: tl.constexpr, SCHEDULE: tl.constexpr, FULL_BLOCKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Keys and values through descriptors over (batch, head, key, column), one for each chunk of the head dim."""
    off_b, off_h, off_h_kv, off_bh, block = program(num_heads, group, seqlen_q, BLOCK_M, IS_CAUSAL)
    b = off_b.to(tl.int64)
    h = off_h.to(tl.int64)
    q_ptr += b * in_eights(stride_qb, STRIDES_IN_EIGHTS) + h * in_eights(stride_qh, STRIDES_IN_EIGHTS)
    out_ptr += b * in_eights(stride_ob, STRIDES_IN_EIGHTS) + h * in_eights(stride_oh, STRIDES_IN_EIGHTS)
    if MASK != NO_MASK:
        mask_ptr += b * stride_mask_b + h * stride_mask_h
    _attend_rows(
        q_ptr, k0_desc, k1_desc, k2_desc, v0_desc, v1_desc, v2_desc, out_ptr, lse_ptr, entropy_ptr, mask_ptr,
        scale_ptr, score_scale, off_b, off_h, off_h_kv, off_bh.to(tl.int64) * seqlen_q, block,
        in_eights(stride_qm, STRIDES_IN_EIGHTS), stride_qd, 0, 0, 0, 0, in_eights(stride_om, STRIDES_IN_EIGHTS),
        stride_mask_m, stride_mask_n, stride_scale, seqlen_q, seqlen_k,
        HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY,
        IS_CAUSAL, SCALE_TENSOR, NEGATIVE, RETURN_LSE, RETURN_ENTROPY, TAIL_STAGES, True,
        SCHEDULE, FULL_BLOCKS, WIDE,
    )  # fmt: skip
