"""Attention backward in Triton: the gradients of out, lse, entropy and the head-mean map, in any combination.

Three kernels: values of each row that the others need; dQ, one program a block of queries; dK and dV, one program a
block of keys. Each element of a gradient is summed by one program in a fixed order: no atomics, the same bits each
time. README.md beside this file derives the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.tiles_flat import (
    ADDED_MASK,
    EXCLUDED,
    LN2,
    LOG2E,
    NO_MASK,
    PRECISION,
    QUARTER,
    VANISHED,
    by_query,
    head_factor,
    in_base_2,
    in_eights,
    in_nats,
    load_rows,
    masked_scores,
    program,
    score_offsets,
    store_rows,
)

# In float16, P is held 2**SHIFT times as large: 1/N of a long row would lose bits there, or vanish. P is at most 1, and
# the sixteenth of float16's range that is left is far more than rounding can add.
SHIFT = tl.constexpr(12.0)
UNSHIFT = tl.constexpr(2.0**-12)
# Beyond, the rounding of a row's lse moves its P by a hundredth: additive masks such as -1e9 get there.
LARGE_LSE = tl.constexpr(1.0e5)


@triton.jit
def _load_chunks(
    ptr, start, stride_row, stride_col, seqlen,
    C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, CHECK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of rows as three chunks of columns; a chunk that this width does not have repeats the first."""
    x0 = load_rows(ptr, 0, 0, start, stride_row, stride_col, seqlen, 0, ROWS, C0, DIM, CHECK, False, WIDE)
    x1 = x0
    x2 = x0
    if C1 > 0:
        x1 = load_rows(ptr, 0, 0, start, stride_row, stride_col, seqlen, C0, ROWS, C1, DIM, CHECK, False, WIDE)
    if C2 > 0:
        x2 = load_rows(ptr, 0, 0, start, stride_row, stride_col, seqlen, C0 + C1, ROWS, C2, DIM, CHECK, False, WIDE)
    return x0, x1, x2


@triton.jit
def _store_chunks(
    ptr, x0, x1, x2, factor, start, stride_row, seqlen,
    C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
    NEED: tl.constexpr,
):  # fmt: skip
    if NEED & 1:
        store_rows(ptr, x0 * factor, start, stride_row, 1, seqlen, 0, ROWS, C0, DIM, WIDE)
    if NEED & 2 and C1 > 0:
        store_rows(ptr, x1 * factor, start, stride_row, 1, seqlen, C0, ROWS, C1, DIM, WIDE)
    if NEED & 4 and C2 > 0:
        store_rows(ptr, x2 * factor, start, stride_row, 1, seqlen, C0 + C1, ROWS, C2, DIM, WIDE)


@triton.jit
def _zeros(ROWS: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr):
    x0 = tl.zeros([ROWS, C0], tl.float32)
    x1 = tl.zeros([ROWS, C1 if C1 > 0 else 16], tl.float32)
    x2 = tl.zeros([ROWS, C2 if C2 > 0 else 16], tl.float32)
    return x0, x1, x2


@triton.jit
def _product(a0, a1, a2, b0, b1, b2, C1: tl.constexpr, C2: tl.constexpr):
    """Rows of a times rows of b."""
    c = tl.dot(a0, tl.trans(b0), input_precision=PRECISION)
    if C1 > 0:
        c = tl.dot(a1, tl.trans(b1), c, input_precision=PRECISION)
    if C2 > 0:
        c = tl.dot(a2, tl.trans(b2), c, input_precision=PRECISION)
    return c


@triton.jit
def _accumulate(acc0, acc1, acc2, a, b0, b1, b2, C1: tl.constexpr, C2: tl.constexpr, NEED: tl.constexpr):
    """acc + a b for the chunks whose bit is in NEED."""
    if NEED & 1:
        acc0 = tl.dot(a, b0, acc0, input_precision=PRECISION)
    if NEED & 2 and C1 > 0:
        acc1 = tl.dot(a, b1, acc1, input_precision=PRECISION)
    if NEED & 4 and C2 > 0:
        acc2 = tl.dot(a, b2, acc2, input_precision=PRECISION)
    return acc0, acc1, acc2


@triton.jit
def _row_sums(a0, a1, a2, b0, b1, b2, C1: tl.constexpr, C2: tl.constexpr):
    total = tl.sum(a0.to(tl.float32) * b0.to(tl.float32), 1)
    if C1 > 0:
        total += tl.sum(a1.to(tl.float32) * b1.to(tl.float32), 1)
    if C2 > 0:
        total += tl.sum(a2.to(tl.float32) * b2.to(tl.float32), 1)
    return total


@triton.jit
def _row_norms(a0, a1, a2, C1: tl.constexpr, C2: tl.constexpr):
    total = tl.sum(tl.abs(a0.to(tl.float32)), 1)
    if C1 > 0:
        total += tl.sum(tl.abs(a1.to(tl.float32)), 1)
    if C2 > 0:
        total += tl.sum(tl.abs(a2.to(tl.float32)), 1)
    return total


@triton.jit
def _load_values(ptr, start, seqlen, ROWS: tl.constexpr, CHECK: tl.constexpr):
    """One number a row; 0 beyond the last, which makes P finite and its gradient 0 there."""
    offs = start + tl.arange(0, ROWS)
    if CHECK:
        return tl.load(ptr + offs, mask=offs < seqlen, other=0.0)
    else:
        return tl.load(ptr + offs)


@triton.jit
def _load_map_tile(
    map_ptr, start_m, start_n, map_start, map_stop, stride_map_m, stride_map_n, seqlen_q,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The map's gradient beside a tile of scores, 0 for keys outside of the map's range."""
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_N)
    base = map_ptr + tl.cast(start_m, tl.int64) * stride_map_m
    base += tl.cast(start_n - map_start, tl.int64) * stride_map_n
    ptrs = base + score_offsets(rows, cols, stride_map_m, stride_map_n, TRANSPOSED, WIDE)
    inside_m = start_m + rows < seqlen_q
    inside_n = (start_n + cols >= map_start) & (start_n + cols < map_stop)
    if TRANSPOSED:
        return tl.load(ptrs, mask=inside_n[:, None] & inside_m[None, :], other=0.0)
    else:
        return tl.load(ptrs, mask=inside_m[:, None] & inside_n[None, :], other=0.0)


@triton.jit
def _probabilities(
    s, factor, lse_i, log2_l, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, HAS_ENTROPY: tl.constexpr, WIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """P of a tile and its logarithm in base 2, both with the shift that the row values bring.

    lse is ``lse_i``, in the unit of the scores, and ``log2_l``, in base 2; the latter is 0 without an added mask.
    """
    if MASK != NO_MASK or CHECK_KEYS:
        z = masked_scores(s, factor, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                          BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, WIDE, TRANSPOSED,
                          True)  # fmt: skip
        x = in_base_2(z - by_query(lse_i, TRANSPOSED), MASK)
        if MASK == ADDED_MASK:
            x = x - by_query(log2_l, TRANSPOSED)
        if HAS_ENTROPY:
            x = tl.where(x < VANISHED, VANISHED, x)
    else:
        x = s * factor - by_query(lse_i, TRANSPOSED)
    return tl.math.exp2(x), x


@triton.jit
def _score_gradient(
    p, x, dp, delta, g_i, dmap, up, up_map,
    HAS_DO: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_MAP: tl.constexpr, SCALED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """dS = P (dP + M - delta - g log2 P). SCALED: times ``up``, by which delta and g were multiplied already."""
    t = -by_query(delta, TRANSPOSED)
    if HAS_DO and SCALED:
        t = dp * up + t
    elif HAS_DO:
        t = dp + t
    if HAS_ENTROPY:
        t = t - by_query(g_i, TRANSPOSED) * x
    if HAS_MAP:
        t = t + dmap * up_map
    return p * t


@triton.jit
def _powers(bound_ptr, off, RESCALE: tl.constexpr):
    """2**n and 2**-n with 2**n * bound from 2**14 to 2**15; the former divided by 2**SHIFT, which P brings."""
    up = 1.0
    down = 1.0
    if RESCALE:
        exponent = (tl.load(bound_ptr + off).to(tl.int32, bitcast=True) >> 23) & 255
        exponent = tl.minimum(tl.maximum(exponent, 32), 240)
        up = ((256 - exponent) << 23).to(tl.float32, bitcast=True)  # 2**(141 - 12 - exponent)
        down = ((exponent - 14) << 23).to(tl.float32, bitcast=True)  # 2**(exponent - 141)
    return up, down


@triton.jit
def attention_backward_rows(
    q_ptr, k_ptr, out_ptr, do_ptr, lse_ptr, entropy_ptr, grad_lse_ptr, grad_entropy_ptr, map_ptr, value_max_ptr,
    lse_i_ptr, log2_l_ptr, delta_ptr, g_ptr, bound_ptr, mask_ptr, scale_ptr, score_scale,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_ob, stride_oh, stride_om, stride_od,
    stride_dob, stride_doh, stride_dom, stride_dod,
    stride_map_b, stride_map_m, stride_map_n,
    stride_mask_b, stride_mask_h, stride_mask_m, stride_mask_n, stride_scale,
    num_heads, group, seqlen_q, seqlen_k, map_start, map_stop,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, HAS_DO: tl.constexpr, HAS_LSE: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, HAS_MAP: tl.constexpr, RESCALE: tl.constexpr, TAIL_STAGES: tl.constexpr,
    STRIDES_IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What the other kernels read for each row. Grid: (batch * heads * blocks of queries,).

    lse in the unit of the scores; delta, which holds all of dS / P that is the same along a row; g, the entropy's
    gradient times ln 2; and under RESCALE the largest |dS| that the rows of this program can have.
    """
    off_b, off_h, off_h_kv, off_bh, block = program(num_heads, group, seqlen_q, BLOCK_M, False)
    b = off_b.to(tl.int64)
    h = off_h.to(tl.int64)
    off_row = off_bh.to(tl.int64) * seqlen_q
    start_m = block * BLOCK_M
    offs_m = start_m + tl.arange(0, BLOCK_M)
    inside = offs_m < seqlen_q

    lse = tl.load(lse_ptr + off_row + offs_m, mask=inside, other=float("-inf"))
    lse_i = lse * (QUARTER if MASK == ADDED_MASK else LOG2E)  # in the unit of the scores
    lse_i = tl.where(lse == float("-inf"), 0.0, lse_i)  # a row without keys: every P is 0 by its mask
    delta = tl.zeros([BLOCK_M], tl.float32)
    bound = tl.zeros([BLOCK_M], tl.float32)
    if HAS_DO:
        out_ptr += b * in_eights(stride_ob, STRIDES_IN_EIGHTS) + h * in_eights(stride_oh, STRIDES_IN_EIGHTS)
        do_ptr += b * in_eights(stride_dob, STRIDES_IN_EIGHTS) + h * in_eights(stride_doh, STRIDES_IN_EIGHTS)
        stride_om = in_eights(stride_om, STRIDES_IN_EIGHTS)
        stride_dom = in_eights(stride_dom, STRIDES_IN_EIGHTS)
        o0, o1, o2 = _load_chunks(out_ptr, start_m, stride_om, stride_od, seqlen_q,
                                  V0, V1, V2, HEAD_DIM_V, BLOCK_M, True, WIDE)  # fmt: skip
        do0, do1, do2 = _load_chunks(do_ptr, start_m, stride_dom, stride_dod, seqlen_q,
                                     V0, V1, V2, HEAD_DIM_V, BLOCK_M, True, WIDE)  # fmt: skip
        delta += _row_sums(o0, o1, o2, do0, do1, do2, V1, V2)
        if RESCALE:  # |dP| and its mean over the row
            bound += 2.0 * tl.load(value_max_ptr) * _row_norms(do0, do1, do2, V1, V2)
    if HAS_LSE:
        grad_lse = tl.load(grad_lse_ptr + off_row + offs_m, mask=inside, other=0.0)
        delta -= grad_lse
        bound += tl.abs(grad_lse)

    # Sums over keys that no forward pass has left behind.
    log2_l = tl.zeros([BLOCK_M], tl.float32)
    if HAS_MAP or MASK == ADDED_MASK:
        q_ptr += b * in_eights(stride_qb, STRIDES_IN_EIGHTS) + h * in_eights(stride_qh, STRIDES_IN_EIGHTS)
        k_ptr += b * in_eights(stride_kb, STRIDES_IN_EIGHTS)
        k_ptr += off_h_kv.to(tl.int64) * in_eights(stride_kh, STRIDES_IN_EIGHTS)
        stride_qm = in_eights(stride_qm, STRIDES_IN_EIGHTS)
        stride_kn = in_eights(stride_kn, STRIDES_IN_EIGHTS)
        if MASK != NO_MASK:
            mask_ptr += b * stride_mask_b + h * stride_mask_h
        factor = head_factor(score_scale, scale_ptr, off_h, stride_scale, SCALE_TENSOR, MASK)
        q0, q1, q2 = _load_chunks(q_ptr, start_m, stride_qm, stride_qd, seqlen_q,
                                  D0, D1, D2, HEAD_DIM, BLOCK_M, True, WIDE)  # fmt: skip
        end_n = seqlen_k
        if IS_CAUSAL:
            end_n = tl.minimum(seqlen_k, start_m + BLOCK_M)
    if MASK == ADDED_MASK:
        # Where the mask is large on a whole row, lse in one number keeps nothing of the sum, and P would be off by
        # powers of two: maximum and sum anew, in two numbers.
        large = (tl.abs(lse) > LARGE_LSE) & (lse > float("-inf"))
        end_large = tl.where(tl.max(large.to(tl.int32), 0) > 0, end_n, 0)
        m_i = tl.full([BLOCK_M], EXCLUDED, tl.float32)
        l_i = tl.zeros([BLOCK_M], tl.float32)
        for start_n in tl.range(0, end_large, BLOCK_N, num_stages=TAIL_STAGES):
            k0, k1, k2 = _load_chunks(k_ptr, start_n, stride_kn, stride_kd, seqlen_k,
                                      D0, D1, D2, HEAD_DIM, BLOCK_N, True, WIDE)  # fmt: skip
            s = _product(q0, q1, q2, k0, k1, k2, D1, D2)
            z = masked_scores(s, factor, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
                              BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True, WIDE, False, True)  # fmt: skip
            m_new = tl.maximum(m_i, tl.max(z, 1))
            l_i *= tl.math.exp2(in_base_2(m_i - m_new, MASK))
            l_i += tl.sum(tl.math.exp2(in_base_2(z - m_new[:, None], MASK)), 1)
            m_i = m_new
        lse_i = tl.where(large, m_i, lse_i)
        log2_l = tl.where(large, tl.math.log2(l_i), 0.0)
    if HAS_MAP:
        map_ptr += b * stride_map_b
        first = (map_start // BLOCK_N) * BLOCK_N
        weight = 1.0 / num_heads
        largest = tl.zeros([BLOCK_M], tl.float32)
        for start_n in tl.range(first, tl.minimum(map_stop, end_n), BLOCK_N, num_stages=TAIL_STAGES):
            k0, k1, k2 = _load_chunks(k_ptr, start_n, stride_kn, stride_kd, seqlen_k,
                                      D0, D1, D2, HEAD_DIM, BLOCK_N, True, WIDE)  # fmt: skip
            s = _product(q0, q1, q2, k0, k1, k2, D1, D2)
            p, _ = _probabilities(
                s, factor, lse_i, log2_l, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q,
                seqlen_k, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True, False, WIDE, False,
            )  # fmt: skip
            dmap = _load_map_tile(map_ptr, start_m, start_n, map_start, map_stop, stride_map_m, stride_map_n, seqlen_q,
                                  BLOCK_M, BLOCK_N, False, WIDE) * weight  # fmt: skip
            delta += tl.sum(p * dmap, 1)
            if RESCALE:
                largest = tl.maximum(largest, tl.max(tl.abs(dmap), 1))
        bound += 2.0 * largest

    if HAS_ENTROPY:
        g_i = tl.load(grad_entropy_ptr + off_row + offs_m, mask=inside, other=0.0)
        entropy = tl.load(entropy_ptr + off_row + offs_m, mask=inside, other=0.0)
        delta += g_i * entropy
        bound += tl.abs(g_i) * (entropy + 0.4)  # P |ln P| <= 1 / e
        g_i = g_i * LN2
        if RESCALE:
            delta -= g_i * SHIFT
        tl.store(g_ptr + off_row + offs_m, g_i, mask=inside)
    if RESCALE:
        log2_l -= SHIFT
        tl.store(bound_ptr + tl.program_id(0), tl.max(bound, 0))
    if MASK == ADDED_MASK:
        tl.store(log2_l_ptr + off_row + offs_m, log2_l, mask=inside)
    elif RESCALE:
        lse_i += log2_l
    tl.store(lse_i_ptr + off_row + offs_m, lse_i, mask=inside)
    tl.store(delta_ptr + off_row + offs_m, delta, mask=inside)


@triton.jit
def _query_gradient_block(
    q0, q1, q2, do0, do1, do2, dq0, dq1, dq2, dscale_i, k_ptr, v_ptr, map_ptr, mask_ptr,
    factor, lse_i, log2_l, delta, g_i, up, up_map, start_m, start_n,
    stride_kn, stride_kd, stride_vn, stride_vd, stride_map_m, stride_map_n, stride_mask_m, stride_mask_n,
    seqlen_q, seqlen_k, map_start, map_stop,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, HAS_DO: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    HAS_MAP: tl.constexpr, RESCALE: tl.constexpr, NEED_DQ: tl.constexpr, NEED_DSCALE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One block of keys for all queries of this program."""
    k0, k1, k2 = _load_chunks(k_ptr, start_n, stride_kn, stride_kd, seqlen_k,
                              D0, D1, D2, HEAD_DIM, BLOCK_N, CHECK_KEYS, WIDE)  # fmt: skip
    s = _product(q0, q1, q2, k0, k1, k2, D1, D2)  # [BLOCK_M, BLOCK_N]
    p, x = _probabilities(
        s, factor, lse_i, log2_l, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
        BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, HAS_ENTROPY, WIDE, False,
    )  # fmt: skip
    dp = p
    if HAS_DO:
        v0, v1, v2 = _load_chunks(v_ptr, start_n, stride_vn, stride_vd, seqlen_k,
                                  V0, V1, V2, HEAD_DIM_V, BLOCK_N, CHECK_KEYS, WIDE)  # fmt: skip
        dp = _product(do0, do1, do2, v0, v1, v2, V1, V2)
    dmap = p
    if HAS_MAP:
        dmap = _load_map_tile(map_ptr, start_m, start_n, map_start, map_stop, stride_map_m, stride_map_n, seqlen_q,
                              BLOCK_M, BLOCK_N, False, WIDE)  # fmt: skip
    ds = _score_gradient(p, x, dp, delta, g_i, dmap, up, up_map, HAS_DO, HAS_ENTROPY, HAS_MAP, RESCALE, False)
    if NEED_DSCALE:
        dscale_i += tl.sum(ds * s, 1)
    if NEED_DQ:
        dq0, dq1, dq2 = _accumulate(dq0, dq1, dq2, ds.to(k0.dtype), k0, k1, k2, D1, D2, NEED_DQ)
    return dq0, dq1, dq2, dscale_i


@triton.jit
def attention_backward_query(
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, dscale_ptr, map_ptr,
    lse_i_ptr, log2_l_ptr, delta_ptr, g_ptr, bound_ptr, mask_ptr, scale_ptr, score_scale,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_dob, stride_doh, stride_dom, stride_dod,
    stride_dqb, stride_dqh, stride_dqm,
    stride_map_b, stride_map_m, stride_map_n,
    stride_mask_b, stride_mask_h, stride_mask_m, stride_mask_n, stride_scale,
    num_heads, group, seqlen_q, seqlen_k, map_start, map_stop,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, HAS_DO: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    HAS_MAP: tl.constexpr, RESCALE: tl.constexpr, NEED_DQ: tl.constexpr, NEED_DSCALE: tl.constexpr,
    TAIL_STAGES: tl.constexpr, STRIDES_IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dQ, and this block's part of the scale's gradient. Grid: (batch * heads * blocks of queries,)."""
    off_b, off_h, off_h_kv, off_bh, block = program(num_heads, group, seqlen_q, BLOCK_M, IS_CAUSAL)
    b = off_b.to(tl.int64)
    h = off_h.to(tl.int64)
    h_kv = off_h_kv.to(tl.int64)
    off_row = off_bh.to(tl.int64) * seqlen_q
    start_m = block * BLOCK_M
    q_ptr += b * in_eights(stride_qb, STRIDES_IN_EIGHTS) + h * in_eights(stride_qh, STRIDES_IN_EIGHTS)
    k_ptr += b * in_eights(stride_kb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_kh, STRIDES_IN_EIGHTS)
    stride_qm = in_eights(stride_qm, STRIDES_IN_EIGHTS)
    stride_kn = in_eights(stride_kn, STRIDES_IN_EIGHTS)
    stride_vn = in_eights(stride_vn, STRIDES_IN_EIGHTS)
    stride_dom = in_eights(stride_dom, STRIDES_IN_EIGHTS)
    if MASK != NO_MASK:
        mask_ptr += b * stride_mask_b + h * stride_mask_h
    factor = head_factor(score_scale, scale_ptr, off_h, stride_scale, SCALE_TENSOR, MASK)
    up, down = _powers(bound_ptr, off_bh // group, RESCALE)

    q0, q1, q2 = _load_chunks(q_ptr, start_m, stride_qm, stride_qd, seqlen_q,
                              D0, D1, D2, HEAD_DIM, BLOCK_M, True, WIDE)  # fmt: skip
    do0, do1, do2 = q0, q1, q2  # placeholders
    if HAS_DO:
        v_ptr += b * in_eights(stride_vb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_vh, STRIDES_IN_EIGHTS)
        do_ptr += b * in_eights(stride_dob, STRIDES_IN_EIGHTS) + h * in_eights(stride_doh, STRIDES_IN_EIGHTS)
        do0, do1, do2 = _load_chunks(do_ptr, start_m, stride_dom, stride_dod, seqlen_q,
                                     V0, V1, V2, HEAD_DIM_V, BLOCK_M, True, WIDE)  # fmt: skip
    lse_i = _load_values(lse_i_ptr + off_row, start_m, seqlen_q, BLOCK_M, True)
    delta = _load_values(delta_ptr + off_row, start_m, seqlen_q, BLOCK_M, True) * up
    log2_l = delta
    if MASK == ADDED_MASK:
        log2_l = _load_values(log2_l_ptr + off_row, start_m, seqlen_q, BLOCK_M, True)
    g_i = delta
    if HAS_ENTROPY:
        g_i = _load_values(g_ptr + off_row, start_m, seqlen_q, BLOCK_M, True) * up
    dq0, dq1, dq2 = _zeros(BLOCK_M, D0, D1, D2)
    dscale_i = tl.zeros([BLOCK_M], tl.float32)

    # First the blocks whose keys every query here attends, then those of the map, on the diagonal or over the end.
    end_n = seqlen_k
    end_full = seqlen_k
    if IS_CAUSAL:
        end_n = tl.minimum(seqlen_k, start_m + BLOCK_M)
        end_full = tl.minimum(seqlen_k, start_m + 1)
    end_full = (end_full // BLOCK_N) * BLOCK_N
    first = 0
    width = 0
    up_map = up
    if HAS_MAP:
        map_ptr += b * stride_map_b
        up_map = up * (1.0 / num_heads)
        first = tl.minimum((map_start // BLOCK_N) * BLOCK_N, end_full)
        width = tl.minimum(tl.cdiv(map_stop, BLOCK_N) * BLOCK_N, end_full) - first
    for i in tl.range(0, end_full - width, BLOCK_N):
        start_n = i
        if HAS_MAP:
            start_n = i + tl.where(i < first, 0, width)
        dq0, dq1, dq2, dscale_i = _query_gradient_block(
            q0, q1, q2, do0, do1, do2, dq0, dq1, dq2, dscale_i, k_ptr, v_ptr, map_ptr, mask_ptr,
            factor, lse_i, log2_l, delta, g_i, up, up_map, start_m, start_n,
            stride_kn, stride_kd, stride_vn, stride_vd, stride_map_m, stride_map_n, stride_mask_m, stride_mask_n,
            seqlen_q, seqlen_k, map_start, map_stop,
            HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False,
            HAS_DO, HAS_ENTROPY, False, RESCALE, NEED_DQ, NEED_DSCALE, WIDE,
        )  # fmt: skip
    for i in tl.range(0, width + end_n - end_full, BLOCK_N, num_stages=TAIL_STAGES):
        start_n = end_full + i
        if HAS_MAP:
            start_n = i + tl.where(i < width, first, end_full - width)
        dq0, dq1, dq2, dscale_i = _query_gradient_block(
            q0, q1, q2, do0, do1, do2, dq0, dq1, dq2, dscale_i, k_ptr, v_ptr, map_ptr, mask_ptr,
            factor, lse_i, log2_l, delta, g_i, up, up_map, start_m, start_n,
            stride_kn, stride_kd, stride_vn, stride_vd, stride_map_m, stride_map_n, stride_mask_m, stride_mask_n,
            seqlen_q, seqlen_k, map_start, map_stop,
            HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True,
            HAS_DO, HAS_ENTROPY, HAS_MAP, RESCALE, NEED_DQ, NEED_DSCALE, WIDE,
        )  # fmt: skip

    if NEED_DSCALE:  # the scores' gradient times the unscaled scores
        num_blocks = tl.cdiv(seqlen_q, BLOCK_M)
        tl.store(dscale_ptr + off_bh.to(tl.int64) * num_blocks + block, tl.sum(dscale_i, 0) * down)
    if NEED_DQ:
        dq_ptr += b * in_eights(stride_dqb, STRIDES_IN_EIGHTS) + h * in_eights(stride_dqh, STRIDES_IN_EIGHTS)
        _store_chunks(dq_ptr, dq0, dq1, dq2, in_nats(factor, MASK) * down, start_m,
                      in_eights(stride_dqm, STRIDES_IN_EIGHTS), seqlen_q, D0, D1, D2, HEAD_DIM, BLOCK_M, WIDE,
                      NEED_DQ)  # fmt: skip


@triton.jit
def _key_gradient_block(
    k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, q_ptr, do_ptr, map_ptr, mask_ptr,
    lse_i_ptr, log2_l_ptr, delta_ptr, g_ptr, factor, up, up_map, start_m, start_n,
    stride_qm, stride_qd, stride_dom, stride_dod, stride_map_m, stride_map_n, stride_mask_m, stride_mask_n,
    seqlen_q, seqlen_k, map_start, map_stop,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK: tl.constexpr, SCALED: tl.constexpr, HAS_DO: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, HAS_MAP: tl.constexpr, NEED_DK: tl.constexpr, NEED_DV: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One block of queries for all keys of this program; tiles of scores are [BLOCK_N, BLOCK_M].

    Keys beyond the last make rows of their own, which are not stored. Queries beyond the last have rows of zeros. So a
    score needs a CHECK on the diagonal alone, and where a mask could be read beyond its end.
    """
    q0, q1, q2 = _load_chunks(q_ptr, start_m, stride_qm, stride_qd, seqlen_q,
                              D0, D1, D2, HEAD_DIM, BLOCK_M, CHECK, WIDE)  # fmt: skip
    lse_i = _load_values(lse_i_ptr, start_m, seqlen_q, BLOCK_M, CHECK)
    log2_l = lse_i
    if MASK == ADDED_MASK:
        log2_l = _load_values(log2_l_ptr, start_m, seqlen_q, BLOCK_M, CHECK)
    s = _product(k0, k1, k2, q0, q1, q2, D1, D2)
    p, x = _probabilities(
        s, factor, lse_i, log2_l, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
        BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, (CHECK and IS_CAUSAL) or MASK != NO_MASK, HAS_ENTROPY,
        WIDE, True,
    )  # fmt: skip
    dp = p
    if HAS_DO:
        do0, do1, do2 = _load_chunks(do_ptr, start_m, stride_dom, stride_dod, seqlen_q,
                                     V0, V1, V2, HEAD_DIM_V, BLOCK_M, CHECK, WIDE)  # fmt: skip
        if NEED_DV:
            dv0, dv1, dv2 = _accumulate(dv0, dv1, dv2, p.to(do0.dtype), do0, do1, do2, V1, V2,
                                        NEED_DV)  # fmt: skip
        if NEED_DK:
            dp = _product(v0, v1, v2, do0, do1, do2, V1, V2)
    if NEED_DK:
        delta = _load_values(delta_ptr, start_m, seqlen_q, BLOCK_M, CHECK) * up
        g_i = delta
        if HAS_ENTROPY:
            g_i = _load_values(g_ptr, start_m, seqlen_q, BLOCK_M, CHECK) * up
        dmap = p
        if HAS_MAP:
            dmap = _load_map_tile(map_ptr, start_m, start_n, map_start, map_stop, stride_map_m, stride_map_n, seqlen_q,
                                  BLOCK_M, BLOCK_N, True, WIDE)  # fmt: skip
        ds = _score_gradient(p, x, dp, delta, g_i, dmap, up, up_map, HAS_DO, HAS_ENTROPY, HAS_MAP, SCALED, True)
        dk0, dk1, dk2 = _accumulate(dk0, dk1, dk2, ds.to(q0.dtype), q0, q1, q2, D1, D2, NEED_DK)
    return dk0, dk1, dk2, dv0, dv1, dv2


@triton.jit
def attention_backward_key(
    q_ptr, k_ptr, v_ptr, do_ptr, dk_ptr, dv_ptr, map_ptr,
    lse_i_ptr, log2_l_ptr, delta_ptr, g_ptr, bound_ptr, mask_ptr, scale_ptr, score_scale,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_dob, stride_doh, stride_dom, stride_dod,
    stride_dkb, stride_dkh, stride_dkn,
    stride_dvb, stride_dvh, stride_dvn,
    stride_map_b, stride_map_m, stride_map_n,
    stride_mask_b, stride_mask_h, stride_mask_m, stride_mask_n, stride_scale,
    num_heads, num_heads_kv, group, seqlen_q, seqlen_k, map_start, map_stop,
    HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, SCALE_TENSOR: tl.constexpr, HAS_DO: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    HAS_MAP: tl.constexpr, RESCALE: tl.constexpr, NEED_DK: tl.constexpr, NEED_DV: tl.constexpr,
    TAIL_STAGES: tl.constexpr, STRIDES_IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dK and dV, summed over the query heads that share a key head. Grid: (batch * key heads * blocks of keys,)."""
    off_b, off_h_kv, _, off_bh_kv, block = program(num_heads_kv, 1, seqlen_k, BLOCK_N, False)
    b = off_b.to(tl.int64)
    h_kv = off_h_kv.to(tl.int64)
    start_n = block * BLOCK_N
    q_ptr += b * in_eights(stride_qb, STRIDES_IN_EIGHTS)
    k_ptr += b * in_eights(stride_kb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_kh, STRIDES_IN_EIGHTS)
    stride_qh = in_eights(stride_qh, STRIDES_IN_EIGHTS)
    stride_qm = in_eights(stride_qm, STRIDES_IN_EIGHTS)
    stride_kn = in_eights(stride_kn, STRIDES_IN_EIGHTS)
    stride_vn = in_eights(stride_vn, STRIDES_IN_EIGHTS)
    stride_doh = in_eights(stride_doh, STRIDES_IN_EIGHTS)
    stride_dom = in_eights(stride_dom, STRIDES_IN_EIGHTS)

    k0, k1, k2 = _load_chunks(k_ptr, start_n, stride_kn, stride_kd, seqlen_k,
                              D0, D1, D2, HEAD_DIM, BLOCK_N, True, WIDE)  # fmt: skip
    v0, v1, v2 = k0, k1, k2  # placeholders
    if HAS_DO:
        do_ptr += b * in_eights(stride_dob, STRIDES_IN_EIGHTS)
    if HAS_DO and NEED_DK:
        v_ptr += b * in_eights(stride_vb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_vh, STRIDES_IN_EIGHTS)
        v0, v1, v2 = _load_chunks(v_ptr, start_n, stride_vn, stride_vd, seqlen_k,
                                  V0, V1, V2, HEAD_DIM_V, BLOCK_N, True, WIDE)  # fmt: skip
    dk0, dk1, dk2 = _zeros(BLOCK_N, D0, D1, D2)
    dv0, dv1, dv2 = _zeros(BLOCK_N, V0, V1, V2)

    # Scales of a tensor differ among the heads that are summed, so they go into the sum, relative to the largest.
    scale = in_nats(score_scale, MASK)
    if SCALE_TENSOR:
        scale = 0.0
        for g in tl.range(0, group):
            scale = tl.maximum(scale, tl.abs(tl.load(scale_ptr + (off_h_kv * group + g) * stride_scale).to(tl.float32)))
    up, down = _powers(bound_ptr, off_bh_kv, RESCALE)

    # Blocks of queries: those from `first` on have an attended key here, those from `full` to `end_full` attend them
    # all and lie within the rows.
    end_full = (seqlen_q // BLOCK_M) * BLOCK_M
    end_m = tl.cdiv(seqlen_q, BLOCK_M) * BLOCK_M
    first = 0
    full = 0
    if IS_CAUSAL:
        first = tl.minimum((start_n // BLOCK_M) * BLOCK_M, end_full)
        full = tl.minimum(tl.cdiv(start_n + BLOCK_N - 1, BLOCK_M) * BLOCK_M, end_full)
    end_plain = end_full
    if HAS_MAP:
        map_ptr += b * stride_map_b
        if (start_n < map_stop) & (start_n + BLOCK_N > map_start):
            end_plain = full
    for g in tl.range(0, group):
        off_h = off_h_kv * group + g
        h = off_h.to(tl.int64)
        off_row = (b * num_heads + h) * seqlen_q
        q_h = q_ptr + h * stride_qh
        do_h = do_ptr
        if HAS_DO:
            do_h += h * stride_doh
        mask_h = mask_ptr
        if MASK != NO_MASK:
            mask_h += b * stride_mask_b + h * stride_mask_h
        log2_l_h = log2_l_ptr
        if MASK == ADDED_MASK:
            log2_l_h += off_row
        g_h = g_ptr
        if HAS_ENTROPY:
            g_h += off_row
        factor = head_factor(score_scale, scale_ptr, off_h, stride_scale, SCALE_TENSOR, MASK)
        up_h = up
        if SCALE_TENSOR:
            sm_scale = tl.load(scale_ptr + off_h * stride_scale).to(tl.float32)
            up_h = up * tl.where(scale > 0.0, sm_scale / tl.where(scale > 0.0, scale, 1.0), 0.0)
        up_map = up_h
        if HAS_MAP:
            up_map = up_h * (1.0 / num_heads)
        for start_m in tl.range(full, end_plain, BLOCK_M):
            dk0, dk1, dk2, dv0, dv1, dv2 = _key_gradient_block(
                k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, q_h, do_h, map_ptr, mask_h,
                lse_i_ptr + off_row, log2_l_h, delta_ptr + off_row, g_h, factor, up_h, up_map, start_m, start_n,
                stride_qm, stride_qd, stride_dom, stride_dod, stride_map_m, stride_map_n, stride_mask_m, stride_mask_n,
                seqlen_q, seqlen_k, map_start, map_stop,
                HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False,
                RESCALE or SCALE_TENSOR, HAS_DO, HAS_ENTROPY, False, NEED_DK, NEED_DV, WIDE,
            )  # fmt: skip
        if HAS_MAP:
            for start_m in tl.range(end_plain, end_full, BLOCK_M):
                dk0, dk1, dk2, dv0, dv1, dv2 = _key_gradient_block(
                    k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, q_h, do_h, map_ptr, mask_h,
                    lse_i_ptr + off_row, log2_l_h, delta_ptr + off_row, g_h, factor, up_h, up_map, start_m, start_n,
                    stride_qm, stride_qd, stride_dom, stride_dod, stride_map_m, stride_map_n, stride_mask_m,
                    stride_mask_n, seqlen_q, seqlen_k, map_start, map_stop,
                    HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL,
                    False, RESCALE or SCALE_TENSOR, HAS_DO, HAS_ENTROPY, True, NEED_DK, NEED_DV, WIDE,
                )  # fmt: skip
        for i in tl.range(0, full - first + end_m - end_full, BLOCK_M, num_stages=TAIL_STAGES):
            start_m = i + tl.where(i < full - first, first, end_full - full + first)
            dk0, dk1, dk2, dv0, dv1, dv2 = _key_gradient_block(
                k0, k1, k2, v0, v1, v2, dk0, dk1, dk2, dv0, dv1, dv2, q_h, do_h, map_ptr, mask_h,
                lse_i_ptr + off_row, log2_l_h, delta_ptr + off_row, g_h, factor, up_h, up_map, start_m, start_n,
                stride_qm, stride_qd, stride_dom, stride_dod, stride_map_m, stride_map_n, stride_mask_m, stride_mask_n,
                seqlen_q, seqlen_k, map_start, map_stop,
                HEAD_DIM, D0, D1, D2, HEAD_DIM_V, V0, V1, V2, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True,
                RESCALE or SCALE_TENSOR, HAS_DO, HAS_ENTROPY, HAS_MAP, NEED_DK, NEED_DV, WIDE,
            )  # fmt: skip

    if NEED_DK:
        dk_ptr += b * in_eights(stride_dkb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_dkh, STRIDES_IN_EIGHTS)
        _store_chunks(dk_ptr, dk0, dk1, dk2, scale * down, start_n, in_eights(stride_dkn, STRIDES_IN_EIGHTS),
                      seqlen_k, D0, D1, D2, HEAD_DIM, BLOCK_N, WIDE, NEED_DK)  # fmt: skip
    if NEED_DV:
        dv_ptr += b * in_eights(stride_dvb, STRIDES_IN_EIGHTS) + h_kv * in_eights(stride_dvh, STRIDES_IN_EIGHTS)
        _store_chunks(dv_ptr, dv0, dv1, dv2, UNSHIFT if RESCALE else 1.0, start_n,
                      in_eights(stride_dvn, STRIDES_IN_EIGHTS),
                      seqlen_k, V0, V1, V2, HEAD_DIM_V, BLOCK_N, WIDE, NEED_DV)  # fmt: skip
