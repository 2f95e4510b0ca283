"""One block of the online softmax, for kernels in Triton and, compiled once more, in Gluon."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import VANISHED, in_base_2


@triton.jit
def online_softmax(
    s, factor, sums, NEGATIVE: tl.constexpr, WITH_ENTROPY: tl.constexpr, QUARTERS: tl.constexpr, EXCLUDING: tl.constexpr
):
    """One block of the recurrence. The maximum of s * factor is that of s times factor: of -s where factor is NEGATIVE.

    Returns the unnormalized probabilities, the correction of what was accumulated before, and the new m, l, e. The
    logarithm in e is that of the unnormalized p, score - m: shifting it with m keeps it accurate for any logits.
    QUARTERS is the unit of the scores. EXCLUDING: a row may have no key in its first blocks, and some in the next.
    """
    extreme = tl.min(s, 1) if NEGATIVE else tl.max(s, 1)  # [BLOCK_M]
    m = tl.maximum(sums.m, extreme * factor)
    x = s * factor - m[:, None]  # [BLOCK_M, BLOCK_N]
    p = tl.math.exp2(in_base_2(x, QUARTERS))
    shift = sums.m - m
    alpha = tl.math.exp2(in_base_2(shift, QUARTERS))
    e = sums.e
    if WITH_ENTROPY:
        if EXCLUDING:  # from EXCLUDED, after a block without an attended key
            shift = tl.maximum(shift, VANISHED)
        e = alpha * (e + shift * sums.l) + tl.sum(p * x, 1)
    l = sums.l * alpha + tl.sum(p, 1)  # noqa: E741
    return p, alpha, m, l, e


@triton.jit
def square_sum(s, factor, p, alpha, m, sums):
    """The new sum of p * (score - m)**2, beside what `online_softmax` returned for one block; `sums` are the old ones.

    The compiler takes the differences and their products with p from there.
    """
    x = s * factor - m[:, None]  # [BLOCK_M, BLOCK_N]
    shift = tl.maximum(sums.m - m, VANISHED)  # its square stays finite; below, alpha is 0
    # p * x first: where p is 0, the square of x may be infinite
    moved = sums.e + shift * sums.l  # the sum of p * (score - m) before this block, unscaled
    return alpha * (sums.squares + shift * (sums.e + moved)) + tl.sum(p * x * x, 1)


@triton.jit
def mass_sum(p, alpha, sums, start_n, rows, BLOCK_N: tl.constexpr):
    """The new sum of p over the keys that `rows`, a `RowOutputs`, wants the mass of."""
    offs_n = start_n + tl.arange(0, BLOCK_N)
    wanted = (offs_n >= rows.mass_start) & (offs_n < rows.mass_stop)
    return alpha * sums.mass + tl.sum(tl.where(wanted[None, :], p, 0.0), 1)
