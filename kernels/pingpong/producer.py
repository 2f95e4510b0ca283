"""The group of warps that only fetches: queries once, keys and values block by block into their rings."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .copies import load


@gluon.jit
def advance(stage, phase, STAGES: gl.constexpr):
    """The next stage of a ring and the parity of its barriers' phase, which changes with every round."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase


@gluon.jit
def _fetch(descriptor, off_b, off_h, row, FIRST_COL: gl.constexpr, bar, tile):
    box: gl.constexpr = descriptor.block_type.shape
    load(descriptor, [off_b, off_h, row, FIRST_COL], bar, tile.reshape(box))


@gluon.jit
def _fetch_stage(descriptors, ring, off_b, off_h, row, stage, phase, D: gl.constexpr, WIDTH: gl.constexpr):
    mbarrier.wait(ring.empty.index(stage), phase)
    NBYTES: gl.constexpr = WIDTH * descriptors[0].block_type.shape[2] * 2
    mbarrier.expect(ring.full.index(stage), NBYTES)
    for i in gl.static_range(len(D.chunks)):
        _fetch(descriptors[i], off_b, off_h, row, D.chunks[i].start, ring.full.index(stage), ring.tiles[i].index(stage))


@gluon.jit
def produce(work, D: gl.constexpr, OPTIONS: gl.constexpr):
    """Blocks of keys come from the last to the first: those with keys to leave out are then not in the main loop."""
    GROUPS: gl.constexpr = OPTIONS.GROUPS
    ROWS: gl.constexpr = work.q[0].block_type.shape[2]
    mbarrier.expect(work.q_full, GROUPS * ROWS * OPTIONS.WIDTH * 2)
    for group in gl.static_range(GROUPS):
        for i in gl.static_range(len(D.chunks)):
            row = work.start_m + group * ROWS
            tile = work.q_tiles[i].index(group)
            _fetch(work.q[i], work.off_b, work.off_h, row, D.chunks[i].start, work.q_full, tile)
    stage = 0
    phase = 1  # of a new barrier, the phase before the first counts as complete: all stages are empty
    for j in range(work.blocks):
        start_n = (work.blocks - 1 - j) * OPTIONS.BLOCK_N
        _fetch_stage(work.k, work.k_ring, work.off_b, work.off_h_kv, start_n, stage, phase, D, OPTIONS.WIDTH)
        _fetch_stage(work.v, work.v_ring, work.off_b, work.off_h_kv, start_n, stage, phase, D, OPTIONS.WIDTH)
        stage, phase = advance(stage, phase, OPTIONS.STAGES)
