"""Tiles whose columns are a head dim in chunks: a tuple of tiles [ROWS, width], one for each chunk of a `HeadDim`."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import PRECISION, load_tile, store_tile


@triton.jit
def load_chunk(x, i: tl.constexpr, start, seqlen, D: tl.constexpr, ROWS: tl.constexpr, CHECK: tl.constexpr,
               WIDE: tl.constexpr, DESCRIPTORS: tl.constexpr = False):  # fmt: skip
    """Chunk i of rows start .. start + ROWS, zero beyond the last row and column: [ROWS, width].

    From a `Matrix`, with a check for rows beyond the last where CHECK is set, or from a `Described`.
    """
    if DESCRIPTORS:
        return _load_described(x, i, start, D.chunks[i].start, ROWS, D.chunks[i].width)
    else:
        return load_tile(x, start, seqlen, D.chunks[i].start, ROWS, D.chunks[i].width, D.size, CHECK, WIDE)


@triton.jit
def _load_described(x, i: tl.constexpr, start, OFF_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    return x.chunks[i].load([x.off_b, x.off_h, start, OFF_D]).reshape(ROWS, COLS)


@triton.jit
def load_chunks(x, start, seqlen, D: tl.constexpr, ROWS: tl.constexpr, CHECK: tl.constexpr, WIDE: tl.constexpr,
                DESCRIPTORS: tl.constexpr = False):  # fmt: skip
    """All chunks of rows start .. start + ROWS, as `load_chunk` loads them."""
    tiles = ()
    for i in tl.static_range(len(D.chunks)):
        tiles += (load_chunk(x, i, start, seqlen, D, ROWS, CHECK, WIDE, DESCRIPTORS),)
    return tiles


@triton.jit
def store_chunks(x, tiles, factor, start, seqlen, D: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
                 NEEDED: tl.constexpr = 7):  # fmt: skip
    """Rows times `factor`, a number or [ROWS, 1], of the chunks whose bits NEEDED has."""
    for i in tl.static_range(len(D.chunks)):
        if NEEDED & (1 << i):
            store_tile(x, tiles[i] * factor, start, seqlen, D.chunks[i].start, ROWS, D.chunks[i].width, D.size, WIDE)


@triton.jit
def zeros(D: tl.constexpr, ROWS: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(D.chunks)):
        tiles += (_zeros(ROWS, D.chunks[i].width),)
    return tiles


@triton.jit
def _zeros(ROWS: tl.constexpr, COLS: tl.constexpr):
    return tl.zeros([ROWS, COLS], tl.float32)


@triton.jit
def product(a, b, D: tl.constexpr):
    """a b^T, of rows [M, D] and rows [N, D]: [M, N]."""
    c = tl.dot(a[0], tl.trans(b[0]), input_precision=PRECISION)
    for i in tl.static_range(1, len(D.chunks)):
        c = tl.dot(a[i], tl.trans(b[i]), c, input_precision=PRECISION)
    return c


@triton.jit
def accumulate(acc, a, b, D: tl.constexpr, NEEDED: tl.constexpr):
    """acc + a b for a tile a [M, N] and rows b [N, D], of the chunks whose bits NEEDED has: [M, width] each."""
    tiles = ()
    for i in tl.static_range(len(D.chunks)):
        acc_i = acc[i]
        if NEEDED & (1 << i):
            acc_i = tl.dot(a, b[i], acc_i, input_precision=PRECISION)
        tiles += (acc_i,)
    return tiles
