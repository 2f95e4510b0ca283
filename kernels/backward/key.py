"""dK and dV, one program a block of keys, and dQ if that has all keys. kernels/README.md derives the formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.chunks import accumulate, load_chunks, product, store_chunks, zeros
from ..common.tensors import Described, RowValues
from ..common.tiles import (
    ADDED_MASK,
    NO_MASK,
    PRECISION,
    batch_of,
    head_in_batch,
    head_of,
    keys_of_head,
    store_tile,
)
from .scores import (
    UNSHIFT,
    factors_of_keys,
    for_queries,
    head_factors,
    largest_scale,
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


@triton.jit
def _store_dq(dq, ds, k, factor, start, seqlen, D: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """dS K, finished and stored chunk by chunk: with all keys at hand no accumulator stays behind."""
    for i in tl.static_range(len(D.chunks)):
        tile = tl.dot(tl.trans(ds), k[i], input_precision=PRECISION) * factor  # [BLOCK_M, width]
        store_tile(dq, tile, start, seqlen, D.chunks[i].start, ROWS, D.chunks[i].width, D.size, WIDE)


@triton.jit
def _gradient_block(
    sums, k, v, q, grad_out, dq, grad_map, mask, keys, off_keys, of_keys, rows, off_row, factors, dq_factor, start_m,
    start_n, seqlen_q, seqlen_k,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, CHECK: tl.constexpr, WITH_MAP: tl.constexpr,
    SCALED: tl.constexpr, NEED_DK: tl.constexpr, NEED_DV: tl.constexpr, WIDE: tl.constexpr,
    HAS_OUT: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """One block of queries for all keys of this program; tiles of scores are [BLOCK_N, BLOCK_M].

    Keys beyond the last make rows that are not stored. Queries beyond the last have rows of zeros. So a score needs a
    CHECK only on the diagonal, and where a mask or a bias of keys could be read beyond its end.
    """
    q_i = load_chunks(q, start_m, seqlen_q, D, BLOCK_M, CHECK, WIDE, DESCRIPTORS)  # [BLOCK_M, width] each
    lse_i = load_values(rows.lse + off_row, start_m, seqlen_q, BLOCK_M, CHECK)  # [BLOCK_M], as all values of rows
    log2_l = None
    if MASK == ADDED_MASK or keys.bias is not None:
        log2_l = load_values(rows.log2_l + off_row, start_m, seqlen_q, BLOCK_M, CHECK)
    s = product(k, q_i, D)  # [BLOCK_N, BLOCK_M]
    factor = factors.scores
    if of_keys is not None:
        of_pairs = for_queries(of_keys, keys, start_m, BLOCK_M, TRANSPOSED=True)  # [BLOCK_N, 1 or BLOCK_M]
        factor = factor * of_pairs
    CHECK_KEYS: tl.constexpr = (CHECK and IS_CAUSAL) or MASK != NO_MASK or keys.bias is not None
    p, x = probabilities(s, factor, RowValues(lse_i, log2_l, None, None, None), mask, keys, off_keys, start_m, start_n,
                         seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS,
                         rows.g is not None, WIDE, TRANSPOSED=True)  # fmt: skip
    dk = sums.dk
    dv = sums.dv
    dp = None
    NEED_DS: tl.constexpr = NEED_DK or dq is not None
    if HAS_OUT:
        do = load_chunks(grad_out, start_m, seqlen_q, V, BLOCK_M, CHECK, WIDE, DESCRIPTORS)  # [BLOCK_M, width] each
        if NEED_DV:
            dv = accumulate(dv, p.to(do[0].dtype), do, V, NEED_DV)
        if NEED_DS:
            dp = product(v, do, V)  # [BLOCK_N, BLOCK_M]
    if NEED_DS:
        delta = load_values(rows.delta + off_row, start_m, seqlen_q, BLOCK_M, CHECK) * factors.up
        g = None
        if rows.g is not None:
            g = load_values(rows.g + off_row, start_m, seqlen_q, BLOCK_M, CHECK) * factors.up
        dmap = None
        if WITH_MAP:
            dmap = load_map_tile(grad_map, start_m, start_n, seqlen_q, BLOCK_M, BLOCK_N, True, WIDE)
        ds = score_gradient(p, x, dp, dmap, delta, g, factors.up, factors.up_map, SCALED, TRANSPOSED=True)
        if of_keys is not None:  # from here on the gradient of the products
            ds = ds * of_pairs
        if dq is not None and not CHECK_KEYS:  # P of keys beyond the last may be infinite
            ds = tl.where((start_n + tl.arange(0, BLOCK_N) < seqlen_k)[:, None], ds, 0.0)
        ds = ds.to(q_i[0].dtype)
        if NEED_DK:
            dk = accumulate(dk, ds, q_i, D, NEED_DK)
        if dq is not None:
            _store_dq(dq, ds, k, dq_factor, start_m, seqlen_q, D, BLOCK_M, WIDE)
    return Sums(dk, dv)


@triton.jit
def attention_backward_key(
    q, k, v, grad_out, q0, q1, q2, grad_out0, grad_out1, grad_out2, dq, dk, dv, grad_map, rows, mask, keys, scale,
    lengths, num_heads_kv, parts, queries_per_part,
    D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
    MASK_PER_QUERY: tl.constexpr, IS_CAUSAL: tl.constexpr, NEED_DK: tl.constexpr, NEED_DV: tl.constexpr,
    TAIL_STAGES: tl.constexpr, IN_EIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The chunks of dK and dV whose bits are given, summed over the query heads that share a key head.

    With a `dq`, for which one block has to hold all keys, dQ as well. The queries are distributed in parts, whose sums
    dk and dv take one after the other along the batch. Queries and the gradient of out come through descriptors over
    (batch, head, query, column), one for each chunk, where these are given, else through `q` and `grad_out`.
    Grid: (batch * key heads * blocks of keys * parts,).
    """
    num_heads, group, seqlen_q, seqlen_k = lengths
    part = tl.program_id(0) % parts
    num_blocks = tl.cdiv(seqlen_k, BLOCK_N)
    off_bh_kv = tl.program_id(0) // parts // num_blocks
    off_b = off_bh_kv // num_heads_kv
    off_h_kv = off_bh_kv % num_heads_kv
    start_n = tl.program_id(0) // parts % num_blocks * BLOCK_N
    DESCRIPTORS: tl.constexpr = q0 is not None
    HAS_OUT: tl.constexpr = grad_out.ptr is not None or grad_out0 is not None
    HAS_MAP: tl.constexpr = grad_map.ptr is not None
    SCALED: tl.constexpr = rows.bound is not None or scale.ptr is not None
    if not DESCRIPTORS:
        q = batch_of(q, off_b, IN_EIGHTS)
        if HAS_OUT:
            grad_out = batch_of(grad_out, off_b, IN_EIGHTS)

    k_h = head_of(k, off_b, off_h_kv, IN_EIGHTS)
    v_h = head_of(v, off_b, off_h_kv, IN_EIGHTS)
    k_i = load_chunks(k_h, start_n, seqlen_k, D, BLOCK_N, True, WIDE)
    v_i = None
    if HAS_OUT and (NEED_DK or dq.ptr is not None):
        v_i = load_chunks(v_h, start_n, seqlen_k, V, BLOCK_N, True, WIDE)
    sums = Sums(dk=zeros(D, BLOCK_N), dv=zeros(V, BLOCK_N))
    QUARTERS: tl.constexpr = MASK == ADDED_MASK or keys.bias is not None
    largest = largest_scale(scale, off_b, off_h_kv, group, QUARTERS)
    up, down = powers(rows.bound, off_bh_kv)
    dq_factor = largest * down

    # Blocks of queries of this part: those from `first` on have an attended key here, those from `full` to `end_full`
    # attend them all and lie within the rows, and up to `end_plain` the map has none of the keys.
    first = part * queries_per_part
    end = tl.minimum(first + queries_per_part, seqlen_q)
    full = first
    end_full = (end // BLOCK_M) * BLOCK_M
    end_m = tl.cdiv(end, BLOCK_M) * BLOCK_M
    if IS_CAUSAL:
        full = tl.maximum(first, tl.cdiv(start_n + BLOCK_N - 1, BLOCK_M) * BLOCK_M)
        first = tl.minimum(tl.maximum(first, (start_n // BLOCK_M) * BLOCK_M), end_full)
        full = tl.minimum(full, end_full)
    end_plain = end_full
    if HAS_MAP:
        grad_map = map_gradient_of(grad_map, off_b)
        if (start_n < grad_map.stop) & (start_n + BLOCK_N > grad_map.start):
            end_plain = full
    for i_h in tl.range(0, group):
        off_h = off_h_kv * group + i_h
        off_row = (off_b.to(tl.int64) * num_heads + off_h.to(tl.int64)) * seqlen_q
        do_h = None
        if DESCRIPTORS:
            q_h = Described((q0, q1, q2), off_b, off_h)  # Triton's launcher finds no descriptor inside of a tuple
            if HAS_OUT:
                do_h = Described((grad_out0, grad_out1, grad_out2), off_b, off_h)
        else:
            q_h = head_in_batch(q, off_h)
            if HAS_OUT:
                do_h = head_in_batch(grad_out, off_h)
        dq_h = None
        if dq.ptr is not None:
            dq_h = head_of(dq, off_b, off_h, IN_EIGHTS)
        mask_h = mask
        if MASK != NO_MASK:
            mask_h = head_of(mask, off_b, off_h)
        factors = head_factors(scale, largest, up, off_b, off_h, num_heads, QUARTERS, HAS_MAP)
        off_keys = keys_of_head(keys, off_b, off_h)
        of_keys = None
        if keys.scale is not None:
            of_keys = factors_of_keys(keys, off_keys, start_n, seqlen_k, BLOCK_N, True, WIDE)  # [BLOCK_N, 1]
        for start_m in tl.range(full, end_plain, BLOCK_M):
            sums = _gradient_block(sums, k_i, v_i, q_h, do_h, dq_h, grad_map, mask_h, keys, off_keys, of_keys, rows,
                                   off_row, factors, dq_factor, start_m, start_n, seqlen_q, seqlen_k, D, V, BLOCK_M,
                                   BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False, False, SCALED, NEED_DK, NEED_DV,
                                   WIDE, HAS_OUT, DESCRIPTORS)  # fmt: skip
        if HAS_MAP:
            for start_m in tl.range(end_plain, end_full, BLOCK_M):
                sums = _gradient_block(sums, k_i, v_i, q_h, do_h, dq_h, grad_map, mask_h, keys, off_keys, of_keys, rows,
                                       off_row, factors, dq_factor, start_m, start_n, seqlen_q, seqlen_k, D, V, BLOCK_M,
                                       BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, False, True, SCALED, NEED_DK, NEED_DV,
                                       WIDE, HAS_OUT, DESCRIPTORS)  # fmt: skip
        for i in tl.range(0, full - first + end_m - end_full, BLOCK_M, num_stages=TAIL_STAGES):
            start_m = i + tl.where(i < full - first, first, end_full - full + first)
            sums = _gradient_block(sums, k_i, v_i, q_h, do_h, dq_h, grad_map, mask_h, keys, off_keys, of_keys, rows,
                                   off_row, factors, dq_factor, start_m, start_n, seqlen_q, seqlen_k, D, V, BLOCK_M,
                                   BLOCK_N, MASK, MASK_PER_QUERY, IS_CAUSAL, True, HAS_MAP, SCALED, NEED_DK, NEED_DV,
                                   WIDE, HAS_OUT, DESCRIPTORS)  # fmt: skip

    if NEED_DK:
        dk_h = head_of(dk, off_b * parts + part, off_h_kv, IN_EIGHTS)
        store_chunks(dk_h, sums.dk, largest * down, start_n, seqlen_k, D, BLOCK_N, WIDE, NEED_DK)
    if NEED_DV:
        dv_h = head_of(dv, off_b * parts + part, off_h_kv, IN_EIGHTS)
        unshift = 1.0 if rows.bound is None else UNSHIFT
        store_chunks(dv_h, sums.dv, unshift, start_n, seqlen_k, V, BLOCK_N, WIDE, NEED_DV)
