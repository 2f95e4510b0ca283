"""The first backward kernel: what the others read for each row. kernels/README.md derives the formulas."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.chunks import load_chunks, product
from ..common.tensors import RowValues
from ..common.tiles import (
    ADDED_MASK,
    EXCLUDED,
    LN2,
    LOG2E,
    NO_MASK,
    QUARTER,
    head_factor,
    head_of,
    in_base_2,
    keys_of_head,
    masked_scores,
    program,
)
from .scores import SHIFT, factors_of_keys, for_queries, load_map_tile, map_gradient_of, probabilities

# Beyond, the rounding of a row's lse moves its P by a hundredth: additive masks such as -1e9 get there.
LARGE_LSE = tl.constexpr(1.0e5)


@triton.jit
def _row_sums(a, b, D: tl.constexpr):
    """The sum of a * b over each row's columns: [ROWS]."""
    total = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    for i in tl.static_range(1, len(D.chunks)):
        total += tl.sum(a[i].to(tl.float32) * b[i].to(tl.float32), 1)
    return total


@triton.jit
def _row_norms(a, D: tl.constexpr):
    """The sum of |a| over each row's columns: [ROWS]."""
    total = tl.sum(tl.abs(a[0].to(tl.float32)), 1)
    for i in tl.static_range(1, len(D.chunks)):
        total += tl.sum(tl.abs(a[i].to(tl.float32)), 1)
    return total


@triton.jit
def _maximum_and_sum(
    q_i, k, mask, keys, off_keys, factor, start_m, end_n, seqlen_q, seqlen_k,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, TAIL_STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """m and l of each row [BLOCK_M], as in the forward pass."""
    QUARTERS: tl.constexpr = MASK == ADDED_MASK or keys.bias is not None
    m_i = tl.full([BLOCK_M], EXCLUDED, tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    for start_n in tl.range(0, end_n, BLOCK_N, num_stages=TAIL_STAGES):
        k_i = load_chunks(k, start_n, seqlen_k, D, BLOCK_N, True, WIDE)
        s = product(q_i, k_i, D)  # [BLOCK_M, BLOCK_N]
        z = masked_scores(s, factor, mask, start_m, start_n, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, MASK,
                          MASK_PER_QUERY, IS_CAUSAL, True, WIDE, ONE_ROUNDING=True, HAS_KEYS=True, keys=keys,
                          off_keys=off_keys)  # fmt: skip
        m_new = tl.maximum(m_i, tl.max(z, 1))
        l_i *= tl.math.exp2(in_base_2(m_i - m_new, QUARTERS))
        l_i += tl.sum(tl.math.exp2(in_base_2(z - m_new[:, None], QUARTERS)), 1)
        m_i = m_new
    return m_i, l_i


@triton.jit
def _map_terms(
    q_i, k, grad_map, mask, keys, off_keys, factor, rows, weight, start_m, end_n, seqlen_q, seqlen_k,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, RESCALE: tl.constexpr, TAIL_STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """delta + sum_j P M / heads, and the largest |M| / heads under RESCALE, of each row [BLOCK_M]."""
    delta = rows.delta
    largest = tl.zeros([BLOCK_M], tl.float32)
    first = (grad_map.start // BLOCK_N) * BLOCK_N
    for start_n in tl.range(first, tl.minimum(grad_map.stop, end_n), BLOCK_N, num_stages=TAIL_STAGES):
        k_i = load_chunks(k, start_n, seqlen_k, D, BLOCK_N, True, WIDE)
        s = product(q_i, k_i, D)  # [BLOCK_M, BLOCK_N]
        of_keys = factor
        if keys.scale is not None:
            of_keys *= for_queries(factors_of_keys(keys, off_keys, start_n, seqlen_k, BLOCK_N, False, WIDE), keys,
                                   start_m, BLOCK_M, False)  # fmt: skip
        p, _ = probabilities(s, of_keys, rows, mask, keys, off_keys, start_m, start_n, seqlen_q, seqlen_k, BLOCK_M,
                             BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True, False, WIDE)  # fmt: skip
        dmap = load_map_tile(grad_map, start_m, start_n, seqlen_q, BLOCK_M, BLOCK_N, False, WIDE) * weight
        delta += tl.sum(p * dmap, 1)
        if RESCALE:
            largest = tl.maximum(largest, tl.max(tl.abs(dmap), 1))
    return delta, largest


@triton.jit
def attention_backward_rows(
    q, k, out, grad_out, lse_ptr, entropy_ptr, grad_lse_ptr, grad_entropy_ptr, grad_map, value_max_ptr, factor_max_ptr,
    rows, mask, keys, scale, lengths,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, TAIL_STAGES: tl.constexpr, IN_EIGHTS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Writes `rows` (`RowValues`). Grid: (batch * heads * blocks of queries,).

    Under RESCALE, in float16, with the largest |dS| that the rows of this program can have.
    """
    num_heads, group, seqlen_q, seqlen_k = lengths
    off_b, off_h, off_h_kv, off_bh, block = program(num_heads, group, seqlen_q, BLOCK_M, LAST_FIRST=False)
    off_row = off_bh.to(tl.int64) * seqlen_q
    start_m = block * BLOCK_M
    offs_m = start_m + tl.arange(0, BLOCK_M)
    inside = offs_m < seqlen_q
    RESCALE: tl.constexpr = rows.bound is not None
    QUARTERS: tl.constexpr = MASK == ADDED_MASK or keys.bias is not None

    lse = tl.load(lse_ptr + off_row + offs_m, mask=inside, other=float("-inf"))  # [BLOCK_M], as all values of rows
    lse_i = lse * (QUARTER if QUARTERS else LOG2E)  # in the unit of the scores
    lse_i = tl.where(lse == float("-inf"), 0.0, lse_i)  # a row without keys: every P is 0 by its mask
    delta = tl.zeros([BLOCK_M], tl.float32)
    bound = tl.zeros([BLOCK_M], tl.float32)
    if grad_out.ptr is not None:  # delta = dO . out, |dS| <= 2 ||dO||_1 max |v|
        o = load_chunks(head_of(out, off_b, off_h, IN_EIGHTS), start_m, seqlen_q, V, BLOCK_M, True, WIDE)
        do = load_chunks(head_of(grad_out, off_b, off_h, IN_EIGHTS), start_m, seqlen_q, V, BLOCK_M, True, WIDE)
        delta += _row_sums(o, do, V)
        if RESCALE:  # |dP| and its mean over the row
            bound += 2.0 * tl.load(value_max_ptr) * _row_norms(do, V)
    if grad_lse_ptr is not None:
        grad_lse = tl.load(grad_lse_ptr + off_row + offs_m, mask=inside, other=0.0)
        delta -= grad_lse
        bound += tl.abs(grad_lse)

    # Sums over keys that no forward pass has left behind.
    log2_l = tl.zeros([BLOCK_M], tl.float32)
    if grad_map.ptr is not None or QUARTERS:
        k_h = head_of(k, off_b, off_h_kv, IN_EIGHTS)
        if MASK != NO_MASK:
            mask = head_of(mask, off_b, off_h)
        factor = head_factor(scale, off_b, off_h, QUARTERS)
        off_keys = keys_of_head(keys, off_b, off_h)
        q_i = load_chunks(head_of(q, off_b, off_h, IN_EIGHTS), start_m, seqlen_q, D, BLOCK_M, True, WIDE)
        end_n = seqlen_k
        if IS_CAUSAL:
            end_n = tl.minimum(seqlen_k, start_m + BLOCK_M)
    if QUARTERS:
        # Where the mask or the bias is large on a whole row, lse in one number keeps nothing of the sum, and P would be
        # off by powers of two: maximum and sum anew, in two numbers.
        large = (tl.abs(lse) > LARGE_LSE) & (lse > float("-inf"))
        end_large = tl.where(tl.max(large.to(tl.int32), 0) > 0, end_n, 0)
        m_i, l_i = _maximum_and_sum(q_i, k_h, mask, keys, off_keys, factor, start_m, end_large, seqlen_q, seqlen_k, D,
                                    BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, TAIL_STAGES, WIDE)  # fmt: skip
        lse_i = tl.where(large, m_i, lse_i)
        log2_l = tl.where(large, tl.math.log2(l_i), 0.0)
    if grad_map.ptr is not None:
        delta, largest = _map_terms(
            q_i, k_h, map_gradient_of(grad_map, off_b), mask, keys, off_keys, factor,
            RowValues(lse_i, log2_l, delta, None, None), 1.0 / num_heads, start_m, end_n, seqlen_q, seqlen_k, D,
            BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, RESCALE, TAIL_STAGES, WIDE,
        )  # fmt: skip
        bound += 2.0 * largest

    if grad_entropy_ptr is not None:
        g = tl.load(grad_entropy_ptr + off_row + offs_m, mask=inside, other=0.0)
        entropy = tl.load(entropy_ptr + off_row + offs_m, mask=inside, other=0.0)
        delta += g * entropy
        bound += tl.abs(g) * (entropy + 0.4)  # P |ln P| <= 1 / e
        g = g * LN2
        if RESCALE:
            delta -= g * SHIFT
        tl.store(rows.g + off_row + offs_m, g, mask=inside)
    if RESCALE:
        log2_l -= SHIFT
        if factor_max_ptr is not None:  # dS times the factor of a key is what has to fit
            bound *= tl.maximum(tl.load(factor_max_ptr), 1.0)
        tl.store(rows.bound + tl.program_id(0), tl.max(bound, 0))
    if QUARTERS:
        tl.store(rows.log2_l + off_row + offs_m, log2_l, mask=inside)
    elif RESCALE:
        lse_i += log2_l
    tl.store(rows.lse + off_row + offs_m, lse_i, mask=inside)
    tl.store(rows.delta + off_row + offs_m, delta, mask=inside)
