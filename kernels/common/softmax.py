"""One block of the online softmax, for kernels in Triton and, compiled once more, in Gluon.

The lanes of a warp that share a row of scores have to agree on its maximum in every block, but not on its sums: if each
lane keeps those of its own keys, one exchange after the last block is enough (Dao, arXiv 2307.08691, does the same).
So a tile of scores comes as [BLOCK_M, BLOCK_N], and its row sums are [BLOCK_M], or by lane, and they are
[BLOCK_M, LANES]; all functions below take both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import VANISHED, in_base_2

# Of the result of a product by mma.sync or wgmma, four lanes share a row: each has two of eight columns. The reshaped
# tile stays in its registers, and the compiler finds by itself that its sums over the other axes stay in a lane.
LANES = tl.constexpr(4)
ADJACENT = tl.constexpr(2)


@triton.jit
def by_lane(tile):
    """[BLOCK_M, BLOCK_N // 8, LANES, ADJACENT] of [BLOCK_M, BLOCK_N]."""
    return tl.reshape(tile, (tile.shape[0], tile.shape[1] // (LANES * ADJACENT), LANES, ADJACENT))


@triton.jit
def lanes_outside(tile):
    """[BLOCK_M, LANES, BLOCK_N // LANES] of a tile by lane, for one reduction of its last axis; others as they are.

    Not for what the next product takes: behind a transposition, Triton does not see that it comes from a product, and
    divides its rows among warps.
    """
    if len(tile.shape) == 4:
        columns: tl.constexpr = tile.shape[1] * tile.shape[3]
        tile = tl.reshape(tl.permute(tile, (0, 2, 1, 3)), (tile.shape[0], tile.shape[2], columns))
    return tile


@triton.jit
def row_sums(tile):
    """[BLOCK_M], or [BLOCK_M, LANES] by lane."""
    tile = lanes_outside(tile)
    return tl.sum(tile, len(tile.shape) - 1)


@triton.jit
def over_lanes(sums):
    """[BLOCK_M] of row sums, after the last block."""
    return sums if len(sums.shape) == 1 else tl.sum(sums, 1)


@triton.jit
def row_extremes(tile, LEAST: tl.constexpr):
    """The minimum of each row, or its maximum: [BLOCK_M]."""
    tile = lanes_outside(tile)
    for _ in tl.static_range(len(tile.shape) - 1):
        tile = tl.min(tile, len(tile.shape) - 1) if LEAST else tl.max(tile, len(tile.shape) - 1)
    return tile


@triton.jit
def beside(x, tile):
    """One value a row, [BLOCK_M], with as many axes as a tile, or as the sums over its rows."""
    for _ in tl.static_range(len(tile.shape) - 1):
        x = tl.expand_dims(x, len(x.shape))
    return x


@triton.jit
def online_softmax(
    s, factor, sums, NEGATIVE: tl.constexpr, WITH_ENTROPY: tl.constexpr, QUARTERS: tl.constexpr, EXCLUDING: tl.constexpr
):
    """One block of the recurrence. The maximum of s * factor is that of s times factor: of -s where factor is NEGATIVE.

    Returns the unnormalized probabilities, the correction of what was accumulated before, and the new m, l, e. The
    logarithm in e is that of the unnormalized p, score - m: shifting it with m keeps it accurate for any logits.
    QUARTERS is the unit of the scores. EXCLUDING: a row may have no key in its first blocks, and some in the next.
    """
    m = tl.maximum(sums.m, row_extremes(s, NEGATIVE) * factor)  # [BLOCK_M]
    x = s * factor - beside(m, s)  # [BLOCK_M, BLOCK_N], or by lane
    p = tl.math.exp2(in_base_2(x, QUARTERS))
    shift = sums.m - m
    alpha = tl.math.exp2(in_base_2(shift, QUARTERS))
    alphas = beside(alpha, sums.l)
    e = sums.e
    if WITH_ENTROPY:
        if EXCLUDING:  # from EXCLUDED, after a block without an attended key
            shift = tl.maximum(shift, VANISHED)
        e = alphas * (e + beside(shift, sums.l) * sums.l) + row_sums(p * x)
    l = sums.l * alphas + row_sums(p)  # noqa: E741
    return p, alpha, m, l, e


@triton.jit
def square_sum(s, factor, p, alpha, m, sums):
    """The new sum of p * (score - m)**2, beside what `online_softmax` returned for one block; `sums` are the old ones.

    The compiler takes the differences and their products with p from there.
    """
    x = s * factor - beside(m, s)  # [BLOCK_M, BLOCK_N], or by lane
    shift = beside(tl.maximum(sums.m - m, VANISHED), sums.l)  # its square stays finite; below, alpha is 0
    # p * x first: where p is 0, the square of x may be infinite
    moved = sums.e + shift * sums.l  # the sum of p * (score - m) before this block, unscaled
    return beside(alpha, sums.l) * (sums.squares + shift * (sums.e + moved)) + row_sums(p * x * x)


@triton.jit
def mass_sum(p, alpha, sums, start_n, rows):
    """The new sum of p, [BLOCK_M, BLOCK_N], over the keys that `rows`, a `RowOutputs`, wants the mass of."""
    offs_n = start_n + tl.arange(0, p.shape[1])
    wanted = (offs_n >= rows.mass_start) & (offs_n < rows.mass_stop)
    p = tl.where(wanted[None, :], p, 0.0)
    if len(sums.mass.shape) == 2:
        p = by_lane(p)
    return beside(alpha, sums.mass) * sums.mass + row_sums(p)
