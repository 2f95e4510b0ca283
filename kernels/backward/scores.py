"""What the backward kernels do with a tile of scores: its probabilities, their gradient, and the map's gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.tensors import MapGradient
from ..common.tiles import (
    ADDED_MASK,
    NO_MASK,
    VANISHED,
    by_query,
    head_factor,
    in_base_2,
    in_nats,
    masked_scores,
    score_offsets,
)

# In float16, P is held 2**SHIFT times as large: 1/N of a long row would lose bits there, or vanish. P is at most 1, and
# the sixteenth of float16's range that is left is far more than rounding can add.
SHIFT = tl.constexpr(12.0)
UNSHIFT = tl.constexpr(2.0**-12)


class Factors(NamedTuple):
    """Of one head."""

    scores: Any  # brings products to the unit of the scores
    up: Any  # multiplies dS
    up_map: Any  # multiplies the map's part of it


@triton.jit
def load_values(ptr, start, seqlen, ROWS: tl.constexpr, CHECK: tl.constexpr):
    """One number a row, [ROWS]; 0 beyond the last, which makes P finite and its gradient 0 there."""
    offs = start + tl.arange(0, ROWS)
    if CHECK:
        return tl.load(ptr + offs, mask=offs < seqlen, other=0.0)
    else:
        return tl.load(ptr + offs)


@triton.jit
def map_gradient_of(grad_map, off_b):
    """The map's gradient of one image of the batch."""
    ptr = grad_map.ptr + off_b.to(tl.int64) * grad_map.stride_b
    return MapGradient(ptr, 0, grad_map.stride_row, grad_map.stride_col, grad_map.start, grad_map.stop)


@triton.jit
def load_map_tile(
    grad_map, start_m, start_n, seqlen_q, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TRANSPOSED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The map's gradient beside a tile of scores, 0 for keys outside of the map's range."""
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_N)
    base = grad_map.ptr + tl.cast(start_m, tl.int64) * grad_map.stride_row
    base += tl.cast(start_n - grad_map.start, tl.int64) * grad_map.stride_col
    ptrs = base + score_offsets(rows, cols, grad_map.stride_row, grad_map.stride_col, TRANSPOSED, WIDE)
    inside_m = start_m + rows < seqlen_q
    inside_n = (start_n + cols >= grad_map.start) & (start_n + cols < grad_map.stop)
    if TRANSPOSED:
        return tl.load(ptrs, mask=inside_n[:, None] & inside_m[None, :], other=0.0)  # [BLOCK_N, BLOCK_M]
    else:
        return tl.load(ptrs, mask=inside_m[:, None] & inside_n[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]


@triton.jit
def probabilities(
    s, factor, rows, mask, start_m, start_n, seqlen_q, seqlen_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, MASK_PER_QUERY: tl.constexpr,
    IS_CAUSAL: tl.constexpr, CHECK_KEYS: tl.constexpr, WITH_ENTROPY: tl.constexpr, WIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr = False,
):  # fmt: skip
    """P = 2**x of a tile of scores, and x, both with the shift that the row values bring."""
    if MASK != NO_MASK or CHECK_KEYS:
        z = masked_scores(s, factor, mask, start_m, start_n, seqlen_q, seqlen_k, BLOCK_M, BLOCK_N, MASK,
                          MASK_PER_QUERY, IS_CAUSAL, CHECK_KEYS, WIDE, TRANSPOSED, ONE_ROUNDING=True)  # fmt: skip
        x = in_base_2(z - by_query(rows.lse, TRANSPOSED), MASK == ADDED_MASK)  # [BLOCK_M, BLOCK_N], or TRANSPOSED
        if MASK == ADDED_MASK:
            x = x - by_query(rows.log2_l, TRANSPOSED)
        if WITH_ENTROPY:
            x = tl.where(x < VANISHED, VANISHED, x)
    else:
        x = s * factor - by_query(rows.lse, TRANSPOSED)
    return tl.math.exp2(x), x


@triton.jit
def score_gradient(p, x, dp, dmap, delta, g, up, up_map, SCALED: tl.constexpr, TRANSPOSED: tl.constexpr = False):
    """dS = P (dP + M / heads - delta - g log2 P); dP, M and g are None where they do not contribute.

    SCALED: dS times `up`, by which delta and g were multiplied already; `up_map` is `up` / heads.
    """
    t = -by_query(delta, TRANSPOSED)  # [BLOCK_M, BLOCK_N], or TRANSPOSED, as all here
    if dp is not None:
        if SCALED:
            t = dp * up + t
        else:
            t = dp + t
    if g is not None:
        t = t - by_query(g, TRANSPOSED) * x
    if dmap is not None:
        t = t + dmap * up_map
    return p * t


@triton.jit
def powers(bound_ptr, off):
    """`powers_of` a bound in memory; 1 and 1 where there is none."""
    if bound_ptr is None:
        up = 1.0
        down = 1.0
        return up, down
    else:
        return powers_of(tl.load(bound_ptr + off))


@triton.jit
def powers_of(bound):
    """2**n and 2**-n with 2**n * bound from 2**14 to 2**15; the former divided by 2**SHIFT, which P brings."""
    exponent = (bound.to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(exponent, 32), 240)
    up = ((256 - exponent) << 23).to(tl.float32, bitcast=True)  # 2**(141 - 12 - exponent)
    down = ((exponent - 14) << 23).to(tl.float32, bitcast=True)  # 2**(exponent - 141)
    return up, down


@triton.jit
def largest_scale(scale, off_h_kv, group, QUARTERS: tl.constexpr):
    """The scale in nats; of a tensor the largest of the heads that are summed."""
    if scale.ptr is None:
        return in_nats(scale.factor, QUARTERS)
    else:
        largest = 0.0
        for i in tl.range(0, group):
            each = tl.load(scale.ptr + (off_h_kv * group + i) * scale.stride).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(each))
        return largest


@triton.jit
def head_factors(scale, largest, up, off_h, num_heads, QUARTERS: tl.constexpr, HAS_MAP: tl.constexpr):
    """Scales of a tensor differ among the heads that are summed, so they go into the sum, relative to the largest."""
    scores = head_factor(scale, off_h, QUARTERS)
    if scale.ptr is not None:
        sm_scale = tl.load(scale.ptr + off_h * scale.stride).to(tl.float32)
        up = up * tl.where(largest > 0.0, sm_scale / tl.where(largest > 0.0, largest, 1.0), 0.0)
    up_map = up
    if HAS_MAP:
        up_map = up * (1.0 / num_heads)
    return Factors(scores, up, up_map)
