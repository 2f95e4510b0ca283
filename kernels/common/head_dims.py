"""Head dims as sums of powers of two, which products want: 80 is held as 64 + 16, not padded to 128."""

from __future__ import annotations

import functools
import itertools

from .tensors import Chunk, HeadDim

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
MAX_CHUNKS = 3


@functools.cache
def head_dim_chunks(head_dim: int, max_chunk: int = MAX_HEAD_DIM) -> tuple[int, ...]:
    """At most three descending powers of two from 16 to `max_chunk`, with the least sum that covers the head dim.

    Beyond 128 at most two where two are enough: three accumulators of that width leave too few registers.
    """
    most = 2 if 128 < head_dim <= 2 * max_chunk else MAX_CHUNKS
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim % 8:
        raise ValueError(
            f"head_dim: expected a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got {head_dim}"
        )  # fmt: skip
    sizes = [size for size in (256, 128, 64, 32, 16) if size <= max_chunk]
    covers = (
        cover
        for count in range(1, most + 1)
        for cover in itertools.combinations_with_replacement(sizes, count)
        if sum(cover) >= head_dim
    )
    return min(covers, key=lambda cover: (sum(cover), len(cover)))


def width_held(head_dim: int, head_dim_v: int) -> int:
    """The sum of a head dim's chunks, of the wider one where value's differs: what the tables of tiles go by."""
    return max(sum(head_dim_chunks(head_dim)), sum(head_dim_chunks(head_dim_v)))


@functools.cache
def in_chunks(head_dim: int, max_chunk: int = MAX_HEAD_DIM, *, padded: bool = False) -> HeadDim:
    """A head dim in the chunks of `head_dim_chunks`, or `padded` to one power of two."""
    widths = (power_of_two(head_dim),) if padded else head_dim_chunks(head_dim, max_chunk)
    starts = itertools.accumulate(widths, initial=0)
    return HeadDim(head_dim, tuple(Chunk(start, width) for start, width in zip(starts, widths, strict=False)))


@functools.cache
def in_equal_chunks(head_dim: int, width: int) -> HeadDim:
    """A head dim in chunks of `width` columns, with a power of two for the rest."""
    starts = range(0, head_dim, width)
    return HeadDim(head_dim, tuple(Chunk(start, min(width, power_of_two(head_dim - start))) for start in starts))


def power_of_two(n: int) -> int:
    """The least power of two that is at least n, from 16 on."""
    return max(16, 1 << (n - 1).bit_length())
