"""dQ, one program a block of queries, and the scale's gradient. kernels/README.md derives the formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.chunks import accumulate, load_chunks, product, store_chunks, zeros
from ..common.tensors import Described, RowValues
from ..common.tiles import ADDED_MASK, NO_MASK, head_factor, head_of, in_nats, program
from .scores import (
    load_map_tile,
    load_values,
    map_gradient_of,
    powers,
    probabilities,
    score_gradient,
)


class Sums(NamedTuple):
    """What the loop carries from block to block of keys."""

    dq: Any  # dS K: [BLOCK_M, width] for each chunk of the head dim
    dscale: Any  # the sum of dS * S: [BLOCK_M]


@triton.jit
def _gradient_block(
    sums, q, do, k, v, grad_map, mask, factor, rows, up, up_map, start_m, start_n, seqlen_q, seqlen_k,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, WITH_MAP: tl.constexpr,
    RESCALE: tl.constexpr, NEED_DQ: tl.constexpr, NEED_DSCALE: tl.constexpr, WIDE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """One block of keys for all queries of this program."""
    k_i = load_chunks(k, start_n, seqlen_k, D, BLOCK_N, CHECK_KEYS, WIDE, DESCRIPTORS)  # [BLOCK_N, width] each
    s = product(q, k_i, D)  # [BLOCK_M, BLOCK_N]
    p, x = probabilities(s, factor, rows, mask, start_m, start_n, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, MASK,
                         MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, rows.g is not None, WIDE)  # fmt: skip
    dp = None
    if do is not None:
        v_i = load_chunks(v, start_n, seqlen_k, V, BLOCK_N, CHECK_KEYS, WIDE, DESCRIPTORS)  # [BLOCK_N, width] each
        dp = product(do, v_i, V)  # [BLOCK_M, BLOCK_N]
    dmap = None
    if WITH_MAP:
        dmap = load_map_tile(grad_map, start_m, start_n, seqlen_q, BLOCK_M, BLOCK_N, False, WIDE)
    ds = score_gradient(p, x, dp, dmap, rows.delta, rows.g, up, up_map, RESCALE)  # [BLOCK_M, BLOCK_N]
    dscale = sums.dscale
    if NEED_DSCALE:
        dscale += tl.sum(ds * s, 1)
    dq = sums.dq
    if NEED_DQ:
        dq = accumulate(dq, ds.to(k_i[0].dtype), k_i, D, NEED_DQ)
    return Sums(dq, dscale)


@triton.jit
def attention_backward_query(
    q, k, v, k0, k1, k2, v0, v1, v2, grad_out, dq, dscale_ptr, grad_map, rows, mask, scale, lengths,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, NEED_DQ: tl.constexpr, TAIL_STAGES: tl.constexpr,
    IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The chunks of dQ whose bits NEED_DQ has, and this block's part of the scale's gradient.

    Keys and values come through descriptors over (batch, head, key, column), one for each chunk, where these are given,
    else through `k` and `v`. Grid: (batch * heads * blocks of queries,).
    """
    num_heads, group, seqlen_q, seqlen_k = lengths
    off_b, off_h, off_h_kv, off_bh, block = program(num_heads, group, seqlen_q, BLOCK_M, LAST_FIRST=IS_CAUSAL)
    start_m = block * BLOCK_M
    DESCRIPTORS: tl.constexpr = k0 is not None
    if DESCRIPTORS:
        k_h = Described((k0, k1, k2), off_b, off_h_kv)  # Triton's launcher finds no descriptor inside of a tuple
        v_h = Described((v0, v1, v2), off_b, off_h_kv)
    else:
        k_h = head_of(k, off_b, off_h_kv, IN_EIGHTS)
        v_h = head_of(v, off_b, off_h_kv, IN_EIGHTS)
    if MASK != NO_MASK:
        mask = head_of(mask, off_b, off_h)
    factor = head_factor(scale, off_h, MASK == ADDED_MASK)
    up, down = powers(rows.bound, off_bh // group)
    RESCALE: tl.constexpr = rows.bound is not None
    NEED_DSCALE: tl.constexpr = dscale_ptr is not None
    HAS_MAP: tl.constexpr = grad_map.ptr is not None

    q_i = load_chunks(head_of(q, off_b, off_h, IN_EIGHTS), start_m, seqlen_q, D, BLOCK_M, True, WIDE)
    do = None
    if grad_out.ptr is not None:
        do = load_chunks(head_of(grad_out, off_b, off_h, IN_EIGHTS), start_m, seqlen_q, V, BLOCK_M, True, WIDE)
    off_row = off_bh.to(tl.int64) * seqlen_q
    lse_i = load_values(rows.lse + off_row, start_m, seqlen_q, BLOCK_M, True)  # [BLOCK_M], as all values of rows
    delta = load_values(rows.delta + off_row, start_m, seqlen_q, BLOCK_M, True) * up
    log2_l = None
    if MASK == ADDED_MASK:
        log2_l = load_values(rows.log2_l + off_row, start_m, seqlen_q, BLOCK_M, True)
    g = None
    if rows.g is not None:
        g = load_values(rows.g + off_row, start_m, seqlen_q, BLOCK_M, True) * up
    values = RowValues(lse_i, log2_l, delta, g, None)
    sums = Sums(dq=zeros(D, BLOCK_M), dscale=tl.zeros([BLOCK_M], tl.float32))

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
        grad_map = map_gradient_of(grad_map, off_b)
        up_map = up * (1.0 / num_heads)
        first = tl.minimum((grad_map.start // BLOCK_N) * BLOCK_N, end_full)
        width = tl.minimum(tl.cdiv(grad_map.stop, BLOCK_N) * BLOCK_N, end_full) - first
    for i in tl.range(0, end_full - width, BLOCK_N):
        start_n = i
        if HAS_MAP:
            start_n = i + tl.where(i < first, 0, width)
        sums = _gradient_block(sums, q_i, do, k_h, v_h, grad_map, mask, factor, values, up, up_map, start_m, start_n,
                               seqlen_q, seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False,
                               False, RESCALE, NEED_DQ, NEED_DSCALE, WIDE, DESCRIPTORS)  # fmt: skip
    for i in tl.range(0, width + end_n - end_full, BLOCK_N, num_stages=TAIL_STAGES):
        start_n = end_full + i
        if HAS_MAP:
            start_n = i + tl.where(i < width, first, end_full - width)
        sums = _gradient_block(sums, q_i, do, k_h, v_h, grad_map, mask, factor, values, up, up_map, start_m, start_n,
                               seqlen_q, seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True,
                               HAS_MAP, RESCALE, NEED_DQ, NEED_DSCALE, WIDE, DESCRIPTORS)  # fmt: skip

    if NEED_DSCALE:  # the scores' gradient times the unscaled scores
        num_blocks = tl.cdiv(seqlen_q, BLOCK_M)
        tl.store(dscale_ptr + off_bh.to(tl.int64) * num_blocks + block, tl.sum(sums.dscale, 0) * down)
    if NEED_DQ:
        dq_h = head_of(dq, off_b, off_h, IN_EIGHTS)
        store_chunks(
            dq_h, sums.dq, in_nats(factor, MASK == ADDED_MASK) * down, start_m, seqlen_q, D, BLOCK_M, WIDE, NEED_DQ
        )
