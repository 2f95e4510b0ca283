"""Attention forward for Hopper in Gluon, with the schedule of FlashAttention-3 (Shah et al., arXiv 2407.08608).

One warp fetches; two or three groups of four warps compute 64 queries each, and take turns at issuing products, so
that one group's exponentials run beside another's products. kernels/README.md explains the barriers.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from ..common import tiles
from .consumer import ROWS, consume
from .parts import Ring, Turn, Work
from .producer import produce

program = gluon.jit(tiles.program.fn)
head_factor = gluon.jit(tiles.head_factor.fn)


@gluon.jit
def _shared_tiles(descriptors, COUNT: gl.constexpr, D: gl.constexpr):
    """COUNT tiles of the descriptors' boxes, for each chunk of the head dim."""
    shared = ()
    for i in gl.static_range(len(D.chunks)):
        shared += (_shared_tile(descriptors[i], COUNT, D.chunks[i].width),)
    return shared


@gluon.jit
def _shared_tile(descriptor, COUNT: gl.constexpr, WIDTH: gl.constexpr):
    NROWS: gl.constexpr = descriptor.block_type.shape[2]
    layout: gl.constexpr = gl.NVMMASharedLayout(descriptor.layout.swizzle_byte_width, 16, 2)
    return gl.allocate_shared_memory(descriptor.dtype, [COUNT, NROWS, WIDTH], layout)


@gluon.jit
def _barriers(NUMBER: gl.constexpr, COUNT: gl.constexpr):
    """NUMBER barriers, whose phases end after COUNT arrivals."""
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    bars = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], layout)
    for i in gl.static_range(NUMBER):
        mbarrier.init(bars.index(i), count=COUNT)
    return bars


@gluon.jit
def _ring(descriptors, GROUPS: gl.constexpr, STAGES: gl.constexpr, D: gl.constexpr):
    return Ring(_shared_tiles(descriptors, STAGES, D), _barriers(STAGES, 1), _barriers(STAGES, GROUPS))


@gluon.jit
def _chunks(a, b, c, COUNT: gl.constexpr):
    """The descriptors that are there, as a tuple."""
    if COUNT == 1:
        return (a,)
    elif COUNT == 2:
        return a, b
    else:
        return a, b, c


@gluon.jit
def attention_forward_pingpong(
    q0, q1, q2, k0, k1, k2, v0, v1, v2, out0, out1, out2, lse_ptr, entropy_ptr, scale, lengths,
    D: gl.constexpr, OPTIONS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Descriptors over (batch, head, token, column), one for each chunk. Grid: (batch * heads * blocks of queries,)."""
    GROUPS: gl.constexpr = OPTIONS.GROUPS
    COUNT: gl.constexpr = len(D.chunks)
    BLOCK_M: gl.constexpr = GROUPS * ROWS
    off_b, off_h, off_h_kv, off_bh, block = program(
        lengths.num_heads, lengths.group, lengths.seqlen_q, BLOCK_M, LAST_FIRST=OPTIONS.IS_CAUSAL
    )
    start_m = block * BLOCK_M
    end_n = lengths.seqlen_k
    end_full = end_n  # before it, every query here attends every key
    if OPTIONS.IS_CAUSAL:
        end_n = gl.minimum(lengths.seqlen_k, start_m + BLOCK_M)
        end_full = gl.minimum(lengths.seqlen_k, start_m + 1)
    blocks = gl.cdiv(end_n, OPTIONS.BLOCK_N)
    k, v = _chunks(k0, k1, k2, COUNT), _chunks(v0, v1, v2, COUNT)
    work = Work(
        q=_chunks(q0, q1, q2, COUNT), k=k, v=v, out=_chunks(out0, out1, out2, COUNT),
        q_tiles=_shared_tiles(_chunks(q0, q1, q2, COUNT), GROUPS, D), q_full=_barriers(1, 1).index(0),
        k_ring=_ring(k, GROUPS, OPTIONS.STAGES, D), v_ring=_ring(v, GROUPS, OPTIONS.STAGES, D),
        off_b=off_b, off_h=off_h, off_h_kv=off_h_kv, off_row=off_bh.to(gl.int64) * lengths.seqlen_q,
        start_m=start_m, blocks=blocks, checked=blocks - end_full // OPTIONS.BLOCK_N,
        factor=head_factor(scale, off_h, QUARTERS=False), seqlen_q=lengths.seqlen_q, seqlen_k=lengths.seqlen_k,
    )  # fmt: skip
    turns = _barriers(GROUPS, 1)
    fence_async_shared()
    mbarrier.arrive(turns.index(0), count=1)  # the first group begins
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (consume, (work, lse_ptr, entropy_ptr, Turn(turns.index(0), turns.index(1)), D, OPTIONS, 0)),
                (consume, (work, lse_ptr, entropy_ptr, Turn(turns.index(1), turns.index(0)), D, OPTIONS, 1)),
                (produce, (work, D, OPTIONS)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (work, lse_ptr, entropy_ptr, Turn(turns.index(0), turns.index(1)), D, OPTIONS, 0)),
                (consume, (work, lse_ptr, entropy_ptr, Turn(turns.index(1), turns.index(2)), D, OPTIONS, 1)),
                (consume, (work, lse_ptr, entropy_ptr, Turn(turns.index(2), turns.index(0)), D, OPTIONS, 2)),
                (produce, (work, D, OPTIONS)),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
