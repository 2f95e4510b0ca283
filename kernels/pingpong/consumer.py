"""A group of four warps that computes 64 queries: products and exponentials of successive blocks at the same time.

ptxas moves arithmetic across the issue of a product and across the wait for it, so the order of the lines below alone
gives no overlap. It moves nothing across a branch, and every `mbarrier.wait` has one. Two waits are therefore placed
where the overlap needs a border, and `tests/codegen` counts the exponentials that really run beside a product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..common import softmax, tiles
from ..common.softmax import ADJACENT, LANES
from ..common.tiles import EXCLUDED
from .copies import store
from .producer import advance

# The same text compiled as Gluon, which is Triton with explicit layouts: these functions make no tensors of their own.
online_softmax = gluon.jit(softmax.online_softmax.fn)
by_lane = gluon.jit(softmax.by_lane.fn)
lanes_outside = gluon.jit(softmax.lanes_outside.fn)
over_lanes = gluon.jit(softmax.over_lanes.fn)
store_statistics = gluon.jit(tiles.store_statistics.fn)
without_keys = gluon.jit(tiles.without_keys.fn)

ROWS = gl.constexpr(64)  # queries a group: the height of one wgmma


class Rows(NamedTuple):
    """What a group carries from block to block of keys."""

    m: Any  # [ROWS], relative to it are:
    l: Any  # [ROWS, LANES]  # noqa: E741  the formulas' letter
    e: Any  # [ROWS, LANES]
    acc: Any  # [ROWS, width] for each chunk of the head dim, without the block of p
    p: Any  # [ROWS, BLOCK_N] in half precision: the probabilities whose values are not in acc yet
    donor: Any  # [ROWS, BLOCK_N] in float32, never read: its registers become those of the next scores


@gluon.jit
def _zeros(WIDTH: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    return gl.full([ROWS, WIDTH], 0.0, gl.float32, layout)


@gluon.jit
def _issue_scores(q, keys, stage, donor, GROUP: gl.constexpr, D: gl.constexpr):
    """q k^T of a block, in flight."""
    k_i = keys.tiles[0].index(stage).permute((1, 0))
    s = warpgroup_mma(q[0].index(GROUP), k_i, donor, use_acc=False, is_async=True)
    for i in gl.static_range(1, len(D.chunks)):
        k_i = keys.tiles[i].index(stage).permute((1, 0))
        s = warpgroup_mma(q[i].index(GROUP), k_i, s, is_async=True)
    return s


@gluon.jit
def _issue_values(p, acc, values, stage, D: gl.constexpr):
    """acc + p v of a block, in flight."""
    flying = ()
    for i in gl.static_range(len(D.chunks)):
        flying += (_issue_chunk(p, acc[i], values.tiles[i].index(stage)),)
    return flying


@gluon.jit
def _issue_chunk(p, acc, v):
    layout: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    return warpgroup_mma(gl.convert_layout(p, layout, assert_trivial=True), v, acc, is_async=True)


@gluon.jit
def _land(flying, D: gl.constexpr):
    """All products have ended: the sums as tiles."""
    if len(D.chunks) == 1:
        return (warpgroup_mma_wait(0, deps=[flying[0]]),)
    elif len(D.chunks) == 2:
        return warpgroup_mma_wait(0, deps=[flying[0], flying[1]])
    else:
        return warpgroup_mma_wait(0, deps=[flying[0], flying[1], flying[2]])


@gluon.jit
def _rescale(acc, alpha, D: gl.constexpr):
    scaled = ()
    for i in gl.static_range(len(D.chunks)):
        scaled += (_rows_times(acc[i], alpha),)
    return scaled


@gluon.jit
def _rows_times(x, alpha):
    layout: gl.constexpr = gl.SliceLayout(1, x.type.layout)
    return x * gl.expand_dims(gl.convert_layout(alpha, layout, assert_trivial=True), 1)


@gluon.jit
def _lanes_of(s):
    """[ROWS, LANES, BLOCK_N // LANES] of [ROWS, BLOCK_N]: the same registers."""
    return lanes_outside(by_lane(s))


@gluon.jit
def _of_lanes(p, like):
    """The way back, to a tile like this one."""
    BLOCK_N: gl.constexpr = like.shape[1]
    p = p.reshape([ROWS, LANES, BLOCK_N // (LANES * ADJACENT), ADJACENT]).permute((0, 2, 1, 3))
    return gl.convert_layout(p.reshape([ROWS, BLOCK_N]), like.type.layout, assert_trivial=True)


@gluon.jit
def _softmax(s, rows, work, start_m, j, WITH_ENTROPY: gl.constexpr, CHECKED: gl.constexpr, OPTIONS: gl.constexpr):
    """The softmax of block j from the end; CHECKED: some of its keys may have to be left out."""
    if CHECKED:
        by_key: gl.constexpr = gl.SliceLayout(0, s.type.layout)
        by_query: gl.constexpr = gl.SliceLayout(1, s.type.layout)
        start_n = (work.blocks - 1 - j) * OPTIONS.BLOCK_N
        offs_n = gl.expand_dims(start_n + gl.arange(0, OPTIONS.BLOCK_N, layout=by_key), 0)  # [1, BLOCK_N]
        keep = offs_n < work.seqlen_k
        if OPTIONS.IS_CAUSAL:
            offs_m = gl.expand_dims(start_m + gl.arange(0, ROWS, layout=by_query), 1)  # [ROWS, 1]
            keep = keep & (offs_n <= offs_m)
        z = gl.where(keep, s * work.factor, EXCLUDED)
        # As with a mask, a row may have no key in this block and attend some in the next.
        return online_softmax(_lanes_of(z), 1.0, rows, False, WITH_ENTROPY, QUARTERS=False, EXCLUDING=True)
    elif OPTIONS.SCALE_SIGN == 0:  # the scale is read from memory, its sign not known here
        z = s * work.factor
        return online_softmax(_lanes_of(z), 1.0, rows, False, WITH_ENTROPY, QUARTERS=False, EXCLUDING=False)
    else:  # the scale rides on the subtraction of the maximum
        return online_softmax(
            _lanes_of(s), work.factor, rows, OPTIONS.SCALE_SIGN < 0, WITH_ENTROPY, QUARTERS=False, EXCLUDING=False
        )


@gluon.jit
def _as_operand(p, like):
    return gl.convert_layout(p.to(like.dtype), like.type.layout, assert_trivial=True)


@gluon.jit
def _first_block(
    rows, work, turn, start_m, WITH_ENTROPY: gl.constexpr, D: gl.constexpr, OPTIONS: gl.constexpr, GROUP: gl.constexpr
):
    """The last block of keys: there are no values to add yet."""
    mbarrier.wait(work.q_full, 0)
    mbarrier.wait(work.k_ring.full.index(0), 0)
    mbarrier.wait(turn.mine, 0)
    flying_s = _issue_scores(work.q_tiles, work.k_ring, 0, rows.donor, GROUP, D)
    mbarrier.arrive(turn.next, count=1)
    s = warpgroup_mma_wait(0, deps=[flying_s])
    mbarrier.arrive(work.k_ring.empty.index(0), count=1)
    p, _, m, l, e = _softmax(s, rows, work, start_m, 0, WITH_ENTROPY, OPTIONS.CHECK_KEYS, OPTIONS)  # noqa: E741
    p = _of_lanes(p, s)
    mbarrier.wait(work.k_ring.full.index(1), 0, pred=work.blocks > 1)
    return Rows(m, l, e, rows.acc, _as_operand(p, rows.p), p)


@gluon.jit
def _next_block(
    rows, stage, phase, work, turn, start_m, j,
    WITH_ENTROPY: gl.constexpr, CHECKED: gl.constexpr, D: gl.constexpr, OPTIONS: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Scores and softmax of block j from the end, whose keys are there, and the values of block j - 1, in `stage`."""
    k_ring, v_ring = work.k_ring, work.v_ring
    following, following_phase = advance(stage, phase, OPTIONS.STAGES)
    mbarrier.wait(turn.mine, j & 1)
    flying_s = _issue_scores(work.q_tiles, k_ring, following, rows.donor, GROUP, D)
    mbarrier.wait(v_ring.full.index(stage), phase)  # also a border: the softmax stays behind the issue of the scores
    flying_acc = _issue_values(rows.p, rows.acc, v_ring, stage, D)
    mbarrier.arrive(turn.next, count=1)
    # The last of the products in flight, one for each chunk, are those with values: they go on.
    s = warpgroup_mma_wait(len(D.chunks), deps=[flying_s])
    mbarrier.arrive(k_ring.empty.index(following), count=1)
    p, alpha, m, l, e = _softmax(s, rows, work, start_m, j, WITH_ENTROPY, CHECKED, OPTIONS)  # noqa: E741
    p = _of_lanes(p, s)
    third, third_phase = advance(following, following_phase, OPTIONS.STAGES)
    # Also a border: the exponentials stay before the wait for the products.
    mbarrier.wait(k_ring.full.index(third), third_phase, pred=j + 1 < work.blocks)
    acc = _land(flying_acc, D)
    mbarrier.arrive(v_ring.empty.index(stage), count=1)
    return Rows(m, l, e, _rescale(acc, alpha, D), _as_operand(p, rows.p), p), following, following_phase


@gluon.jit
def _no_rows(work, D: gl.constexpr, OPTIONS: gl.constexpr):
    """Before the first block."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, OPTIONS.BLOCK_N, 16])
    acc = ()
    for i in gl.static_range(len(D.chunks)):
        acc += (_zeros(D.chunks[i].width),)
    operand: gl.constexpr = gl.DotOperandLayout(0, acc[0].type.layout, 2)
    nothing = gl.full([ROWS, OPTIONS.BLOCK_N], 0.0, gl.float32, layout)
    p = gl.convert_layout(nothing.to(work.k_ring.tiles[0].dtype), operand, assert_trivial=True)
    zero = gl.sum(_lanes_of(nothing), 2)
    by_row: gl.constexpr = gl.SliceLayout(1, zero.type.layout)
    return Rows(gl.full([ROWS], EXCLUDED, gl.float32, by_row), zero, zero, acc, p, nothing)


@gluon.jit
def consume(work, lse_ptr, entropy_ptr, turn, D: gl.constexpr, OPTIONS: gl.constexpr, GROUP: gl.constexpr):
    WITH_ENTROPY: gl.constexpr = entropy_ptr is not None
    start_m = work.start_m + GROUP * ROWS
    rows = _first_block(_no_rows(work, D, OPTIONS), work, turn, start_m, WITH_ENTROPY, D, OPTIONS, GROUP)
    stage = 0
    phase = 0
    first = 1
    if OPTIONS.IS_CAUSAL:
        for j in range(1, work.checked):
            rows, stage, phase = _next_block(rows, stage, phase, work, turn, start_m, j, WITH_ENTROPY, True, D,
                                             OPTIONS, GROUP)  # fmt: skip
        first = gl.maximum(work.checked, 1)
    for j in range(first, work.blocks):
        rows, stage, phase = _next_block(rows, stage, phase, work, turn, start_m, j, WITH_ENTROPY, False, D,
                                             OPTIONS, GROUP)  # fmt: skip
    mbarrier.wait(work.v_ring.full.index(stage), phase)
    acc = _land(_issue_values(rows.p, rows.acc, work.v_ring, stage, D), D)

    l = over_lanes(rows.l)  # noqa: E741
    e = over_lanes(rows.e)
    empty = without_keys(rows.m, l)
    inv = 1.0 / l
    offs_m = start_m + gl.arange(0, ROWS, layout=inv.type.layout)
    store_statistics(lse_ptr, entropy_ptr, work.off_row, offs_m, work.seqlen_q, rows.m, l, e, inv, empty,
                     QUARTERS=False, LSE_IN_TWO=False)  # fmt: skip
    acc = _rescale(acc, inv, D)
    # All products with this group's queries have ended: their tiles take the output.
    for i in gl.static_range(len(D.chunks)):
        work.q_tiles[i].index(GROUP).store(acc[i].to(work.q_tiles[i].dtype))
    fence_async_shared()
    for i in gl.static_range(len(D.chunks)):
        tile = work.q_tiles[i].index(GROUP)
        _store(work.out[i], work.off_b, work.off_h, start_m, D.chunks[i].start, tile)
    tma.store_wait(0)


@gluon.jit
def _store(descriptor, off_b, off_h, row, FIRST_COL: gl.constexpr, tile):
    box: gl.constexpr = descriptor.block_type.shape
    store(descriptor, [off_b, off_h, row, FIRST_COL], tile.reshape(box))
