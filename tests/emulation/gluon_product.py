"""A matrix product in Gluon with an explicit schedule: one warp loads, four warps multiply.

`LEFT_OUT` names the wait or arrival that is omitted, one fault at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

ROWS = 64


@gluon.jit
def _fetch(a_desc, b_desc, a_s, b_s, full, empty, row, steps, STAGES: gl.constexpr, LEFT_OUT: gl.constexpr):
    for j in range(steps):
        stage = j % STAGES
        if LEFT_OUT != "wait for an empty stage":
            mbarrier.wait(empty.index(stage), (j // STAGES & 1) ^ 1)  # for a new mbarrier, phase 1 counts as complete
        mbarrier.expect(full.index(stage), a_desc.block_type.nbytes + b_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(a_desc, [row, j * 64], full.index(stage), a_s.index(stage))
        tma.async_copy_global_to_shared(b_desc, [j * 64, 0], full.index(stage), b_s.index(stage))


@gluon.jit
def _multiply(c_desc, a_s, b_s, c_s, full, empty, row, steps, STAGES: gl.constexpr, LEFT_OUT: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    acc = gl.zeros([64, 64], gl.float32, layout)
    for j in range(steps):
        stage = j % STAGES
        if LEFT_OUT != "wait for a full stage":
            mbarrier.wait(full.index(stage), j // STAGES & 1)
        flying = warpgroup_mma(a_s.index(stage), b_s.index(stage), acc, is_async=True)
        if LEFT_OUT == "wait for the product":  # the stage is released too early
            mbarrier.arrive(empty.index(stage), count=1)
            acc = warpgroup_mma_wait(0, deps=[flying])
        else:
            acc = warpgroup_mma_wait(0, deps=[flying])
            if LEFT_OUT != "arrival":
                mbarrier.arrive(empty.index(stage), count=1)
    c_s.store(acc.to(c_s.dtype))
    if LEFT_OUT != "proxy fence":
        fence_async_shared()
    tma.async_copy_shared_to_global(c_desc, [row, 0], c_s)
    if LEFT_OUT != "wait for the store":
        tma.store_wait(0)


@gluon.jit
def product_kernel(a_desc, b_desc, c_desc, steps, STAGES: gl.constexpr, LEFT_OUT: gl.constexpr):
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    bars: gl.constexpr = mbarrier.MBarrierLayout()
    a_s = gl.allocate_shared_memory(a_desc.dtype, [STAGES, 64, 64], layout)
    b_s = gl.allocate_shared_memory(a_desc.dtype, [STAGES, 64, 64], layout)
    c_s = gl.allocate_shared_memory(a_desc.dtype, [64, 64], layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    for k in gl.static_range(STAGES):
        mbarrier.init(full.index(k), count=1)
        mbarrier.init(empty.index(k), count=1)
    fence_async_shared()
    row = gl.program_id(0) * 64
    gl.warp_specialize(
        [
            (_multiply, (c_desc, a_s, b_s, c_s, full, empty, row, steps, STAGES, LEFT_OUT)),
            (_fetch, (a_desc, b_desc, a_s, b_s, full, empty, row, steps, STAGES, LEFT_OUT)),
        ],
        [1],
        [24],
    )


def product(a: Tensor, b: Tensor, stages: int = 2, left_out: str = "") -> Tensor:
    """`a @ b` in float16, of shapes (M, K) and (K, 64); M and K are multiples of 64."""
    c = torch.empty(a.shape[0], 64, dtype=a.dtype, device=a.device)
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    described = [TensorDescriptor(t, list(t.shape), list(t.stride()), [64, 64], layout) for t in (a, b, c)]
    product_kernel[(a.shape[0] // ROWS,)](
        *described, a.shape[1] // 64, STAGES=stages, LEFT_OUT=left_out, num_warps=4, maxnreg=168
    )
    return c
