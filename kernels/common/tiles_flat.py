"""What the forward and the backward kernels share: tiles of rows in and out, scores with the mask, the grid."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Scores are kept finite, because 0 * inf is NaN in the entropy accumulator. An excluded key has the score EXCLUDED,
# which is also where the running maximum starts, so that a maximum below EMPTY_ROW means that no key was attended.
# Scores are in base 2; beside an added mask in quarters of a nat, where the mask's least value, -3.4e38, is -0.85e38,
# above EMPTY_ROW, and its largest is still less than the range of float32 away from EXCLUDED.
EXCLUDED = tl.constexpr(-2.0e38)
EMPTY_ROW = tl.constexpr(-1.5e38)
QUARTER = tl.constexpr(0.25)
LOG2_OF_QUARTERS = tl.constexpr(4 * 1.4426950408889634)
# Below, 2**x is 0 in float32; a way down as far as EXCLUDED overflows when it meets a sum or a gradient.
VANISHED = tl.constexpr(-1.0e4)

PRECISION = tl.constexpr("ieee")  # float32 as torch multiplies it by default; the other dtypes know no other way

NO_MASK = tl.constexpr(0)
BOOL_MASK = tl.constexpr(1)
ADDED_MASK = tl.constexpr(2)


@triton.jit
def in_eights(stride, STRIDES_IN_EIGHTS: tl.constexpr):
    # Triton knows of a stride only whether 16 divides it. Head dim 40 has stride 40: telling it that 8 does is what
    # keeps 16-byte loads, asynchronous copies and with them the software pipeline.
    if STRIDES_IN_EIGHTS:
        return (stride // 8) * 8
    else:
        return stride


@triton.jit
def tile_offsets(rows, cols, stride_row, stride_col, WIDE: tl.constexpr):
    if WIDE:  # even one tile spans more than 2**31 elements
        rows = rows.to(tl.int64)
        cols = cols.to(tl.int64)
    return rows[:, None] * stride_row + cols[None, :] * stride_col


@triton.jit
def load_rows(
    src, off_b, off_h, start, stride_row, stride_col, seqlen,
    OFF_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr,
    CHECK_ROWS: tl.constexpr, DESCRIPTORS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rows start .. start+ROWS, columns OFF_D .. OFF_D+COLS of one head, zero beyond seqlen and DIM.

    ``src`` is a descriptor over (batch, head, row, column), or a pointer to the head's first element.
    """
    if DESCRIPTORS:
        return src.load([off_b, off_h, start, OFF_D]).reshape(ROWS, COLS)
    else:
        base = src + tl.cast(start, tl.int64) * stride_row + OFF_D * tl.cast(stride_col, tl.int64)
        ptrs = base + tile_offsets(tl.arange(0, ROWS), tl.arange(0, COLS), stride_row, stride_col, WIDE)
        inside_rows = (start + tl.arange(0, ROWS) < seqlen)[:, None]
        inside_cols = (OFF_D + tl.arange(0, COLS) < DIM)[None, :]
        if CHECK_ROWS and OFF_D + COLS > DIM:
            return tl.load(ptrs, mask=inside_rows & inside_cols, other=0.0)
        elif CHECK_ROWS:
            return tl.load(ptrs, mask=inside_rows, other=0.0)
        elif OFF_D + COLS > DIM:
            return tl.load(ptrs, mask=inside_cols, other=0.0)
        else:
            return tl.load(ptrs)


@triton.jit
def store_rows(
    out_ptr, x, start, stride_row, stride_col, seqlen,
    OFF_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    base = out_ptr + tl.cast(start, tl.int64) * stride_row + OFF_D * tl.cast(stride_col, tl.int64)
    inside = (start + tl.arange(0, ROWS) < seqlen)[:, None] & (OFF_D + tl.arange(0, COLS) < DIM)[None, :]
    ptrs = base + tile_offsets(tl.arange(0, ROWS), tl.arange(0, COLS), stride_row, stride_col, WIDE)
    tl.store(ptrs, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def by_query(x, TRANSPOSED: tl.constexpr):
    """One value a query, beside a tile of scores: [BLOCK_M, BLOCK_N], or TRANSPOSED."""
    return x[None, :] if TRANSPOSED else x[:, None]


@triton.jit
def by_key(x, TRANSPOSED: tl.constexpr):
    return x[:, None] if TRANSPOSED else x[None, :]


@triton.jit
def score_offsets(rows, cols, stride_m, stride_n, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of a tile of something that has one element a score."""
    if TRANSPOSED:
        return tile_offsets(cols, rows, stride_n, stride_m, WIDE)
    else:
        return tile_offsets(rows, cols, stride_m, stride_n, WIDE)


@triton.jit
def masked_scores(
    s, factor, mask_ptr, start_m, start_n, stride_mask_m, stride_mask_n, seqlen_q, seqlen_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, WIDE: tl.constexpr, TRANSPOSED: tl.constexpr = False,
    ONE_ROUNDING: tl.constexpr = False,
):  # fmt: skip
    """Scaled scores with the mask applied, EXCLUDED where the key is not attended; ``factor`` sets their unit.

    ONE_ROUNDING: the sum with the mask rounds alike wherever this is compiled, for kernels that have to agree on it.
    """
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = start_n + tl.arange(0, BLOCK_N)
    z = s * factor  # [BLOCK_M, BLOCK_N], or TRANSPOSED
    if MASK != NO_MASK:
        base = mask_ptr + tl.cast(start_n, tl.int64) * stride_mask_n
        if MASK_PER_QUERY:  # rows beyond the last read the last one, which needs no check
            base += tl.cast(start_m, tl.int64) * stride_mask_m
            rows = tl.minimum(tl.arange(0, BLOCK_M), seqlen_q - 1 - start_m)
            offsets = score_offsets(rows, tl.arange(0, BLOCK_N), stride_mask_m, stride_mask_n, TRANSPOSED, WIDE)
        else:
            offsets = score_offsets(tl.arange(0, 1), tl.arange(0, BLOCK_N), 0, stride_mask_n, TRANSPOSED, WIDE)
        ptrs = base + offsets
        if CHECK_KEYS:
            bias = tl.load(ptrs, mask=by_key(offs_n < seqlen_k, TRANSPOSED), other=0)
        else:
            bias = tl.load(ptrs)
        if MASK == BOOL_MASK:
            z = tl.where(bias != 0, z, EXCLUDED)
        else:
            bias = bias.to(tl.float32)
            if ONE_ROUNDING:
                z = tl.fma(s, factor, bias * QUARTER)
            else:
                z = z + bias * QUARTER
            z = tl.where(bias == float("-inf"), EXCLUDED, z)
    if CHECK_KEYS:
        keep = by_key(offs_n < seqlen_k, TRANSPOSED)
        if IS_CAUSAL:
            keep = keep & (by_key(offs_n, TRANSPOSED) <= by_query(offs_m, TRANSPOSED))
        z = tl.where(keep, z, EXCLUDED)
    return z


@triton.jit
def head_factor(score_scale, scale_ptr, off_h, stride_scale, SCALE_TENSOR: tl.constexpr, MASK: tl.constexpr):
    """What brings a head's products to the unit of the scores: the argument has it, a scale in memory has not."""
    factor = score_scale
    if SCALE_TENSOR:
        factor = tl.load(scale_ptr + off_h * stride_scale).to(tl.float32) * (QUARTER if MASK == ADDED_MASK else LOG2E)
    return factor


@triton.jit
def in_base_2(x, MASK: tl.constexpr):
    """A difference of scores, in base 2."""
    if MASK == ADDED_MASK:
        return x * LOG2_OF_QUARTERS
    else:
        return x


@triton.jit
def in_nats(x, MASK: tl.constexpr):
    """Scores in nats."""
    if MASK == ADDED_MASK:
        return x * 4.0
    else:
        return x * LN2


@triton.jit
def program(num_heads, group, seqlen, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """(batch, head, key head, batch and head in one, block of rows) of this program, from a grid with one axis."""
    num_blocks = tl.cdiv(seqlen, BLOCK)
    pid = tl.program_id(0)
    off_bh = pid // num_blocks
    block = pid % num_blocks
    if LAST_FIRST:  # the queries with the most keys, where calls are causal
        block = num_blocks - 1 - block
    off_h = off_bh % num_heads
    return off_bh // num_heads, off_h, off_h // group, off_bh, block
