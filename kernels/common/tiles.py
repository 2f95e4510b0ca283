"""What the kernels share: tiles of rows in and out, scores with their mask, a row's statistics, the grid."""

from __future__ import annotations

import triton
import triton.language as tl

from .tensors import KeyOffsets, Matrix, Strided

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Scores are kept finite, because 0 * inf is NaN in the entropy accumulator. An excluded key has the score EXCLUDED,
# which is also where the running maximum starts, so that a maximum below EMPTY_ROW means that no key was attended.
# Scores are in base 2; where something is added to them, a mask or a bias of keys, they are in QUARTERS of a nat. There
# the least value of float32, -3.4e38, is -0.85e38, above EMPTY_ROW, and the largest is still less than the range of
# float32 away from EXCLUDED.
EXCLUDED = tl.constexpr(-2.0e38)
EMPTY_ROW = tl.constexpr(-1.5e38)
QUARTER = tl.constexpr(0.25)
LARGEST_IN_QUARTERS = tl.constexpr(0.85e38)
LOG2_OF_QUARTERS = tl.constexpr(4 * 1.4426950408889634)
# Below, 2**x is 0 in float32; a value as low as EXCLUDED overflows in a product with a sum or a gradient.
VANISHED = tl.constexpr(-1.0e4)

PRECISION = tl.constexpr("ieee")  # float32 as torch multiplies it by default; the other dtypes know no other way

NO_MASK = tl.constexpr(0)
BOOL_MASK = tl.constexpr(1)
ADDED_MASK = tl.constexpr(2)


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


@triton.jit
def in_eights(stride, IN_EIGHTS: tl.constexpr):
    # Triton knows of a stride only whether 16 divides it. Head dim 40 has stride 40: the compiler keeps 16-byte loads,
    # asynchronous copies and with them the software pipeline only where it sees that 8 does.
    if IN_EIGHTS:
        return (stride // 8) * 8
    else:
        return stride


@triton.jit
def head_of(x, off_b, off_h, IN_EIGHTS: tl.constexpr = False):
    """One head of a `Strided` as a `Matrix`. IN_EIGHTS: 8 divides all strides but the columns'."""
    b = tl.cast(off_b, tl.int64)
    h = tl.cast(off_h, tl.int64)
    ptr = x.ptr + (b * in_eights(x.stride_b, IN_EIGHTS) + h * in_eights(x.stride_h, IN_EIGHTS))
    return Matrix(ptr, in_eights(x.stride_row, IN_EIGHTS), x.stride_col)


@triton.jit
def batch_of(x, off_b, IN_EIGHTS: tl.constexpr):
    """A `Strided` from the first element of one image of the batch on, for loops over its heads."""
    ptr = x.ptr + off_b.to(tl.int64) * in_eights(x.stride_b, IN_EIGHTS)
    return Strided(ptr, 0, in_eights(x.stride_h, IN_EIGHTS), in_eights(x.stride_row, IN_EIGHTS), x.stride_col)


@triton.jit
def head_in_batch(x, off_h):
    """One head of what `batch_of` gives, as a `Matrix`."""
    return Matrix(x.ptr + tl.cast(off_h, tl.int64) * x.stride_h, x.stride_row, x.stride_col)


@triton.jit
def keys_of_head(keys, off_b, off_h):
    """Where one head's rows begin in `KeyTables`."""
    b = tl.cast(off_b, tl.int64)
    h = tl.cast(off_h, tl.int64)
    return KeyOffsets(b * keys.scale_b + h * keys.scale_h, b * keys.bias_b + h * keys.bias_h)


@triton.jit
def tile_offsets(rows, cols, stride_row, stride_col, WIDE: tl.constexpr):
    if WIDE:  # even one tile spans more than 2**31 elements
        rows = rows.to(tl.int64)
        cols = cols.to(tl.int64)
    return rows[:, None] * stride_row + cols[None, :] * stride_col


@triton.jit
def load_tile(
    x, start, seqlen,
    OFF_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr,
    CHECK_ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rows start .. start + ROWS, columns OFF_D .. OFF_D + COLS of a `Matrix`, zero beyond seqlen and DIM."""
    base = x.ptr + tl.cast(start, tl.int64) * x.stride_row + OFF_D * tl.cast(x.stride_col, tl.int64)
    ptrs = base + tile_offsets(tl.arange(0, ROWS), tl.arange(0, COLS), x.stride_row, x.stride_col, WIDE)
    inside_rows = (start + tl.arange(0, ROWS) < seqlen)[:, None]  # [ROWS, 1]
    inside_cols = (OFF_D + tl.arange(0, COLS) < DIM)[None, :]  # [1, COLS]
    if CHECK_ROWS and OFF_D + COLS > DIM:
        return tl.load(ptrs, mask=inside_rows & inside_cols, other=0.0)  # [ROWS, COLS]
    elif CHECK_ROWS:
        return tl.load(ptrs, mask=inside_rows, other=0.0)
    elif OFF_D + COLS > DIM:
        return tl.load(ptrs, mask=inside_cols, other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def store_tile(
    x, tile, start, seqlen,
    OFF_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile [ROWS, COLS] to rows start .. start + ROWS, columns OFF_D .. OFF_D + COLS, as far as these are there."""
    base = x.ptr + tl.cast(start, tl.int64) * x.stride_row + OFF_D * tl.cast(x.stride_col, tl.int64)
    inside = (start + tl.arange(0, ROWS) < seqlen)[:, None] & (OFF_D + tl.arange(0, COLS) < DIM)[None, :]
    ptrs = base + tile_offsets(tl.arange(0, ROWS), tl.arange(0, COLS), x.stride_row, x.stride_col, WIDE)
    tl.store(ptrs, tile.to(x.ptr.dtype.element_ty), mask=inside)


@triton.jit
def by_query(x, TRANSPOSED: tl.constexpr):
    """One value a query, beside a tile of scores: [BLOCK_M, 1], or [1, BLOCK_M] where TRANSPOSED."""
    return x[None, :] if TRANSPOSED else x[:, None]


@triton.jit
def by_key(x, TRANSPOSED: tl.constexpr):
    """One value a key, beside a tile of scores: [1, BLOCK_N], or [BLOCK_N, 1] where TRANSPOSED."""
    return x[:, None] if TRANSPOSED else x[None, :]


@triton.jit
def score_offsets(rows, cols, stride_m, stride_n, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of a tile of something that has one element a score."""
    if TRANSPOSED:
        return tile_offsets(cols, rows, stride_n, stride_m, WIDE)  # [BLOCK_N, BLOCK_M]
    else:
        return tile_offsets(rows, cols, stride_m, stride_n, WIDE)  # [BLOCK_M, BLOCK_N]


@triton.jit
def head_factor(scale, off_b, off_h, QUARTERS: tl.constexpr):
    """What brings a head's products to the unit of the scores: the argument does; a scale in memory is multiplied."""
    if scale.ptr is None:
        return scale.factor
    else:
        unit = QUARTER if QUARTERS else LOG2E
        return head_scale(scale, off_b, off_h) * unit


@triton.jit
def head_scale(scale, off_b, off_h):
    """The scale of a head, of one sample where samples have their own, from memory."""
    ptr = scale.ptr + off_h * scale.stride
    if scale.stride_b is not None:
        ptr += tl.cast(off_b, tl.int64) * scale.stride_b
    return tl.load(ptr).to(tl.float32)


@triton.jit
def load_by_key(
    ptr, start_n, stride, seqlen_k, BLOCK_N: tl.constexpr, CHECK_KEYS: tl.constexpr, TRANSPOSED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A number of each key, beside a tile of scores: [1, BLOCK_N], or [BLOCK_N, 1] where TRANSPOSED."""
    offs_n = tl.arange(0, BLOCK_N)
    ptrs = ptr + tl.cast(start_n, tl.int64) * stride
    ptrs += score_offsets(tl.arange(0, 1), offs_n, 0, stride, TRANSPOSED, WIDE)
    if CHECK_KEYS:
        return tl.load(ptrs, mask=by_key(start_n + offs_n < seqlen_k, TRANSPOSED), other=0).to(tl.float32)
    else:
        return tl.load(ptrs).to(tl.float32)


@triton.jit
def masked_scores(
    s, factor, mask, start_m, start_n, seqlen_q, seqlen_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, WIDE: tl.constexpr, TRANSPOSED: tl.constexpr = False,
    ONE_ROUNDING: tl.constexpr = False, HAS_KEYS: tl.constexpr = False, keys=None, off_keys=None,
):  # fmt: skip
    """Scaled scores with the mask applied, EXCLUDED where the key is not attended; `factor` sets their unit.

    ONE_ROUNDING: the sum with the mask rounds alike wherever this is compiled, for kernels that have to agree on it.
    HAS_KEYS: with `keys`, a `KeyTables`, and `off_keys`, the `keys_of_head`, keys may have a factor and a bias each.
    """
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_n = start_n + tl.arange(0, BLOCK_N)
    HAS_SCALE: tl.constexpr = HAS_KEYS and keys.scale is not None
    HAS_BIAS: tl.constexpr = HAS_KEYS and keys.bias is not None
    SOME_ROWS: tl.constexpr = (HAS_SCALE or HAS_BIAS) and keys.start is not None
    if SOME_ROWS:
        concerned = by_query((offs_m >= keys.start) & (offs_m < keys.stop), TRANSPOSED)
    if HAS_SCALE:
        of_keys = factor * load_by_key(keys.scale + off_keys.scale, start_n, keys.scale_key, seqlen_k, BLOCK_N,
                                        CHECK_KEYS, TRANSPOSED, WIDE)  # fmt: skip
        factor = tl.where(concerned, of_keys, factor) if SOME_ROWS else of_keys
    z = s * factor  # [BLOCK_M, BLOCK_N], or TRANSPOSED
    if HAS_BIAS:
        key_bias = load_by_key(keys.bias + off_keys.bias, start_n, keys.bias_key, seqlen_k, BLOCK_N, CHECK_KEYS,
                                TRANSPOSED, WIDE)  # fmt: skip
        if SOME_ROWS:
            key_bias = tl.where(concerned, key_bias, 0.0)
        if MASK != ADDED_MASK:  # beside such a mask the two are added first
            if ONE_ROUNDING:
                z = tl.fma(s, factor, key_bias * QUARTER)
            else:
                z = z + key_bias * QUARTER
            z = tl.where(key_bias == float("-inf"), EXCLUDED, z)
    if MASK != NO_MASK:
        base = mask.ptr + tl.cast(start_n, tl.int64) * mask.stride_col
        if MASK_PER_QUERY:  # rows beyond the last read the last one, which needs no check
            base += tl.cast(start_m, tl.int64) * mask.stride_row
            rows = tl.minimum(tl.arange(0, BLOCK_M), seqlen_q - 1 - start_m)
            offsets = score_offsets(rows, tl.arange(0, BLOCK_N), mask.stride_row, mask.stride_col, TRANSPOSED, WIDE)
        else:  # [1, BLOCK_N], or [BLOCK_N, 1]
            offsets = score_offsets(tl.arange(0, 1), tl.arange(0, BLOCK_N), 0, mask.stride_col, TRANSPOSED, WIDE)
        ptrs = base + offsets
        if CHECK_KEYS:
            bias = tl.load(ptrs, mask=by_key(offs_n < seqlen_k, TRANSPOSED), other=0)
        else:
            bias = tl.load(ptrs)
        if MASK == BOOL_MASK:
            z = tl.where(bias != 0, z, EXCLUDED)
        else:
            bias = bias.to(tl.float32)
            added = bias * QUARTER
            if HAS_BIAS:  # the sum of two large ones stays in the range of one
                added = added + key_bias * QUARTER
                added = tl.minimum(added, LARGEST_IN_QUARTERS, propagate_nan=tl.PropagateNan.ALL)
                added = tl.maximum(added, -LARGEST_IN_QUARTERS, propagate_nan=tl.PropagateNan.ALL)
            if ONE_ROUNDING:
                z = tl.fma(s, factor, added)
            else:
                z = z + added
            z = tl.where(bias == float("-inf"), EXCLUDED, z)
            if HAS_BIAS:
                z = tl.where(key_bias == float("-inf"), EXCLUDED, z)
    if CHECK_KEYS:
        keep = by_key(offs_n < seqlen_k, TRANSPOSED)
        if IS_CAUSAL:
            keep = keep & (by_key(offs_n, TRANSPOSED) <= by_query(offs_m, TRANSPOSED))
        z = tl.where(keep, z, EXCLUDED)
    return z


@triton.jit
def in_base_2(x, QUARTERS: tl.constexpr):
    """A difference of scores, in base 2."""
    if QUARTERS:
        return x * LOG2_OF_QUARTERS
    else:
        return x


@triton.jit
def in_nats(x, QUARTERS: tl.constexpr):
    """Scores in nats."""
    if QUARTERS:
        return x * 4.0
    else:
        return x * LN2


@triton.jit
def without_keys(m_i, l_i):
    """Which rows attended no key. The maximum passes over NaN, the sum does not: a row of NaN is not one of them."""
    return (m_i < EMPTY_ROW) & (l_i == l_i)


@triton.jit
def store_statistics(
    lse_ptr, entropy_ptr, off_row, offs_m, seqlen_q, m_i, l_i, e_i, inv, empty,
    QUARTERS: tl.constexpr, LSE_IN_TWO: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp and the entropy of rows [BLOCK_M], where their pointers are given, in nats.

    `inv` is 1 / l_i. LSE_IN_TWO: m in the unit of the scores and log2(l), for whoever subtracts one after the other.
    """
    inside = offs_m < seqlen_q
    log2_l = tl.math.log2(l_i)
    if lse_ptr is not None:  # lse = m + ln l
        if LSE_IN_TWO:
            pairs = lse_ptr + (off_row + offs_m) * 2
            tl.store(pairs, tl.where(empty, 0.0, m_i), mask=inside)
            tl.store(pairs + 1, tl.where(empty, float("-inf"), log2_l), mask=inside)
        else:
            lse = tl.where(empty, float("-inf"), in_nats(m_i, QUARTERS) + log2_l * LN2)
            tl.store(lse_ptr + off_row + offs_m, lse, mask=inside)
    if entropy_ptr is not None:  # H = ln l - e / l
        entropy = log2_l * LN2 - in_nats(e_i * inv, QUARTERS)
        entropy = tl.where(empty | (entropy <= 0.0), 0.0, entropy)  # rounding; a NaN stays one
        tl.store(entropy_ptr + off_row + offs_m, entropy, mask=inside)


@triton.jit
def store_rows(rows, off_row, offs_m, seqlen_q, sums, inv, empty, QUARTERS: tl.constexpr):
    """What `rows`, a `RowOutputs`, wants of rows [BLOCK_M]: variance and maximum of the logits, the mass of some keys.

    `inv` is 1 / l.
    """
    inside = offs_m < seqlen_q
    if rows.variance is not None:
        mean = in_nats(sums.e * inv, QUARTERS)
        variance = in_nats(in_nats(sums.squares * inv, QUARTERS), QUARTERS) - mean * mean
        variance = tl.where(empty | (variance <= 0.0), 0.0, variance)  # rounding; a NaN stays one
        tl.store(rows.variance + off_row + offs_m, variance, mask=inside)
    if rows.max is not None:
        largest = tl.where(empty, float("-inf"), in_nats(sums.m, QUARTERS))
        largest = tl.where(sums.l == sums.l, largest, sums.l)  # the maximum passes over NaN
        tl.store(rows.max + off_row + offs_m, largest, mask=inside)
    if rows.mass is not None:
        tl.store(rows.mass + off_row + offs_m, tl.where(empty, 0.0, sums.mass * inv), mask=inside)
