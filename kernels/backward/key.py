"""dK and dV, one program a block of keys. kernels/README.md derives the formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.chunks import accumulate, load_chunks, product, store_chunks, zeros
from ..common.tensors import RowValues
from ..common.tiles import ADDED_MASK, NO_MASK, batch_of, head_factor, head_in_batch, head_of, in_nats, program
from .scores import (
    UNSHIFT,
    load_map_tile,
    load_values,
    map_gradient_of,
    powers,
    probabilities,
    score_gradient,
)


class Sums(NamedTuple):
    """What the loops carry from block to block of queries, and from head to head."""

    dk: Any  # dS^T Q: [BLOCK_N, width] for each chunk of the head dim
    dv: Any  # P^T dO: [BLOCK_N, width] for each chunk of value's head dim


class Factors(NamedTuple):
    """Of one head."""

    scores: Any  # brings products to the unit of the scores
    up: Any  # multiplies dS
    up_map: Any  # multiplies the map's part of it


@triton.jit
def _gradient_block(
    sums, k, v, q, grad_out, grad_map, mask, rows, off_row, factors, start_m, start_n, seqlen_q, seqlen_k,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, CHECK: tl.constexpr, WITH_MAP: tl.constexpr,
    SCALED: tl.constexpr, NEED_DK: tl.constexpr, NEED_DV: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of queries for all keys of this program; tiles of scores are [BLOCK_N, BLOCK_M].

    Keys beyond the last make rows that are not stored. Queries beyond the last have rows of zeros. So a score needs a
    CHECK only on the diagonal, and where a mask could be read beyond its end.
    """
    q_i = load_chunks(q, start_m, seqlen_q, D, BLOCK_M, CHECK, WIDE)  # [BLOCK_M, width] each
    lse_i = load_values(rows.lse + off_row, start_m, seqlen_q, BLOCK_M, CHECK)  # [BLOCK_M], as all values of rows
    log2_l = None
    if MASK == ADDED_MASK:
        log2_l = load_values(rows.log2_l + off_row, start_m, seqlen_q, BLOCK_M, CHECK)
    s = product(k, q_i, D)  # [BLOCK_N, BLOCK_M]
    p, x = probabilities(s, factors.scores, RowValues(lse_i, log2_l, None, None, None), mask, start_m, start_n,
                         seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL,
                         (CHECK and IS_CAUSAL) or MASK != NO_MASK, rows.g is not None, WIDE,
                         TRANSPOSED=True)  # fmt: skip
    dk = sums.dk
    dv = sums.dv
    dp = None
    if grad_out.ptr is not None:
        do = load_chunks(grad_out, start_m, seqlen_q, V, BLOCK_M, CHECK, WIDE)  # [BLOCK_M, width] each
        if NEED_DV:
            dv = accumulate(dv, p.to(do[0].dtype), do, V, NEED_DV)
        if NEED_DK:
            dp = product(v, do, V)  # [BLOCK_N, BLOCK_M]
    if NEED_DK:
        delta = load_values(rows.delta + off_row, start_m, seqlen_q, BLOCK_M, CHECK) * factors.up
        g = None
        if rows.g is not None:
            g = load_values(rows.g + off_row, start_m, seqlen_q, BLOCK_M, CHECK) * factors.up
        dmap = None
        if WITH_MAP:
            dmap = load_map_tile(grad_map, start_m, start_n, seqlen_q, BLOCK_M, BLOCK_N, True, WIDE)
        ds = score_gradient(p, x, dp, dmap, delta, g, factors.up, factors.up_map, SCALED, TRANSPOSED=True)
        dk = accumulate(dk, ds.to(q_i[0].dtype), q_i, D, NEED_DK)
    return Sums(dk, dv)


@triton.jit
def _largest_scale(scale, off_h_kv, group, MASK: tl.constexpr):
    """The scale in nats; of a tensor the largest of the heads that are summed."""
    if scale.ptr is None:
        return in_nats(scale.factor, MASK)
    else:
        largest = 0.0
        for i in tl.range(0, group):
            each = tl.load(scale.ptr + (off_h_kv * group + i) * scale.stride).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(each))
        return largest


@triton.jit
def _head_factors(scale, largest, up, off_h, num_heads, MASK: tl.constexpr, HAS_MAP: tl.constexpr):
    """Scales of a tensor differ among the heads that are summed, so they go into the sum, relative to the largest."""
    scores = head_factor(scale, off_h, MASK)
    if scale.ptr is not None:
        sm_scale = tl.load(scale.ptr + off_h * scale.stride).to(tl.float32)
        up = up * tl.where(largest > 0.0, sm_scale / tl.where(largest > 0.0, largest, 1.0), 0.0)
    up_map = up
    if HAS_MAP:
        up_map = up * (1.0 / num_heads)
    return Factors(scores, up, up_map)


@triton.jit
def attention_backward_key(
    q, k, v, grad_out, dk, dv, grad_map, rows, mask, scale, lengths, num_heads_kv,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, NEED_DK: tl.constexpr, NEED_DV: tl.constexpr,
    TAIL_STAGES: tl.constexpr, IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The chunks of dK and dV whose bits are given, summed over the query heads that share a key head.

    Grid: (batch * key heads * blocks of keys,).
    """
    num_heads, group, seqlen_q, seqlen_k = lengths
    off_b, off_h_kv, _, off_bh_kv, block = program(num_heads_kv, 1, seqlen_k, BLOCK_N, LAST_FIRST=False)
    start_n = block * BLOCK_N
    q_b = batch_of(q, off_b, IN_EIGHTS)
    do_b = grad_out
    if grad_out.ptr is not None:
        do_b = batch_of(grad_out, off_b, IN_EIGHTS)
    HAS_MAP: tl.constexpr = grad_map.ptr is not None
    SCALED: tl.constexpr = rows.bound is not None or scale.ptr is not None

    k_h = head_of(k, off_b, off_h_kv, IN_EIGHTS)
    v_h = head_of(v, off_b, off_h_kv, IN_EIGHTS)
    k_i = load_chunks(k_h, start_n, seqlen_k, D, BLOCK_N, True, WIDE)
    v_i = None
    if grad_out.ptr is not None and NEED_DK:
        v_i = load_chunks(v_h, start_n, seqlen_k, V, BLOCK_N, True, WIDE)
    sums = Sums(dk=zeros(D, BLOCK_N), dv=zeros(V, BLOCK_N))
    largest = _largest_scale(scale, off_h_kv, group, MASK)
    up, down = powers(rows.bound, off_bh_kv)

    # Blocks of queries: those from `first` on have an attended key here, those from `full` to `end_full` attend them
    # all and lie within the rows, and up to `end_plain` the map has none of the keys.
    end_full = (seqlen_q // BLOCK_M) * BLOCK_M
    end_m = tl.cdiv(seqlen_q, BLOCK_M) * BLOCK_M
    first = 0
    full = 0
    if IS_CAUSAL:
        first = tl.minimum((start_n // BLOCK_M) * BLOCK_M, end_full)
        full = tl.minimum(tl.cdiv(start_n + BLOCK_N - 1, BLOCK_M) * BLOCK_M, end_full)
    end_plain = end_full
    if HAS_MAP:
        grad_map = map_gradient_of(grad_map, off_b)
        if (start_n < grad_map.stop) & (start_n + BLOCK_N > grad_map.start):
            end_plain = full
    for i_h in tl.range(0, group):
        off_h = off_h_kv * group + i_h
        off_row = (off_b.to(tl.int64) * num_heads + off_h.to(tl.int64)) * seqlen_q
        q_h = head_in_batch(q_b, off_h)
        do_h = do_b
        if grad_out.ptr is not None:
            do_h = head_in_batch(do_b, off_h)
        mask_h = mask
        if MASK != NO_MASK:
            mask_h = head_of(mask, off_b, off_h)
        factors = _head_factors(scale, largest, up, off_h, num_heads, MASK, HAS_MAP)
        for start_m in tl.range(full, end_plain, BLOCK_M):
            sums = _gradient_block(sums, k_i, v_i, q_h, do_h, grad_map, mask_h, rows, off_row, factors,
                                   start_m, start_n, seqlen_q, seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK,
                                   MASK_PER_QUERY, IS_CAUSAL, False, False, SCALED, NEED_DK, NEED_DV, WIDE)  # fmt: skip
        if HAS_MAP:
            for start_m in tl.range(end_plain, end_full, BLOCK_M):
                sums = _gradient_block(sums, k_i, v_i, q_h, do_h, grad_map, mask_h, rows, off_row, factors,
                                       start_m, start_n, seqlen_q, seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK,
                                       MASK_PER_QUERY, IS_CAUSAL, False, True, SCALED, NEED_DK, NEED_DV,
                                       WIDE)  # fmt: skip
        for i in tl.range(0, full - first + end_m - end_full, BLOCK_M, num_stages=TAIL_STAGES):
            start_m = i + tl.where(i < full - first, first, end_full - full + first)
            sums = _gradient_block(sums, k_i, v_i, q_h, do_h, grad_map, mask_h, rows, off_row, factors,
                                   start_m, start_n, seqlen_q, seqlen_k, D, V, BLOCK_M, BLOCK_N, MASK,
                                   MASK_PER_QUERY, IS_CAUSAL, True, HAS_MAP, SCALED, NEED_DK, NEED_DV,
                                   WIDE)  # fmt: skip

    if NEED_DK:
        dk_h = head_of(dk, off_b, off_h_kv, IN_EIGHTS)
        store_chunks(dk_h, sums.dk, largest * down, start_n, seqlen_k, D, BLOCK_N, WIDE, NEED_DK)
    if NEED_DV:
        dv_h = head_of(dv, off_b, off_h_kv, IN_EIGHTS)
        unshift = 1.0 if rows.bound is None else UNSHIFT
        store_chunks(dv_h, sums.dv, unshift, start_n, seqlen_k, V, BLOCK_N, WIDE, NEED_DV)
