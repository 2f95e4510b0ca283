"""What every launch needs: outputs, strides, descriptors, scale arguments, the compiler's options."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from .call import AttentionCall
from .head_dims import MAX_CHUNKS
from .support import lacks_fence
from .tensors import HeadDim, KeyTables, Lengths, Strided

LOG2E = math.log2(math.e)
NO_MASK, BOOL_MASK, ADDED_MASK = 0, 1, 2
INT32_MAX = 2**31 - 1
LEAST_NORMAL = torch.finfo(torch.float32).tiny


class Compiled(Protocol):
    """The compiler's part of a configuration."""

    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def max_registers(self) -> int | None: ...


def pipeline_stages(config: Compiled, target: str, *, by_pointer: bool = True) -> int:
    """In how many stages a loop fetches its tiles, by pointer or by descriptor.

    Triton makes loads by pointer copies that pass the registers by, and before 3.7.1 it leaves out the fence that sm_90
    needs between such a copy and wgmma. In one stage tiles go by way of the registers, behind which there is a fence:
    right, and slower.
    """
    return 1 if by_pointer and lacks_fence(target) else config.num_stages


def tail_stages(config: Compiled, target: str, mask: Tensor | None, *, by_pointer: bool = True) -> int:
    """Stages of the loop over the last blocks, which are few.

    Only with a mask does their pipeline pay, by fetching the mask in the layout of the scores.
    """
    return 1 if mask is None else pipeline_stages(config, target, by_pointer=by_pointer)


def compile_options(config: Compiled, target: str, *, by_pointer: bool = True) -> dict[str, Any]:
    """The compiler's part of a configuration."""
    stages = pipeline_stages(config, target, by_pointer=by_pointer)
    # Off by default in newer Triton; without it the scale, the shift and the entropy take two instructions each.
    options: dict[str, Any] = {"num_warps": config.num_warps, "num_stages": stages, "enable_fp_fusion": True}
    if config.max_registers is not None:
        options["maxnreg"] = config.max_registers
    return options


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every output is allocated here, uninitialized: the kernel writes all of it."""
    return torch.empty(shape, dtype=dtype, device=device)


def allocate_like(t: Tensor, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """Laid out as `t` is: heads inside or outside of tokens, so that undoing a transpose stays free."""
    batch, num_heads, seqlen, _ = t.shape
    dtype = t.dtype if dtype is None else dtype
    if t.stride(1) < t.stride(2):
        return allocate((batch, seqlen, num_heads, width), dtype, t.device).transpose(1, 2)
    return allocate((batch, num_heads, seqlen, width), dtype, t.device)


def tile_span(t: Tensor, rows: int) -> int:
    """The largest offset that the elements of a tile with so many rows can have from its first."""
    return rows * t.stride(2) + 256 * t.stride(3)


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def strided(t: Tensor | None) -> Strided:
    """A tensor (B, H, N, D), or one of three axes without D, as the kernels take it."""
    return Strided(None) if t is None else Strided(t, *t.stride())


def broadcast(mask: Tensor | None) -> Strided:
    """A mask of four axes: a size of 1 broadcasts by stride 0, and nothing is expanded or copied."""
    if mask is None:
        return Strided(None)
    return Strided(mask, *broadcast_strides(mask))


def broadcast_strides(t: Tensor) -> tuple[int, ...]:
    return tuple(0 if n == 1 else stride for n, stride in zip(t.shape, t.stride(), strict=True))


def key_tables(call: AttentionCall) -> KeyTables:
    """The factor and bias of each key, for a call whose `key_rows` are not groups of queries."""
    start, stop = (None, None) if call.key_rows is None else call.key_rows
    scale, bias = broadcast(call.key_scale), broadcast(call.key_bias)
    of_scale = (scale.ptr, scale.stride_b, scale.stride_h, scale.stride_col)
    return KeyTables(*of_scale, bias.ptr, bias.stride_b, bias.stride_h, bias.stride_col, start, stop)


def lengths(query: Tensor, key: Tensor) -> Lengths:
    num_heads = query.shape[1]
    return Lengths(num_heads, num_heads // key.shape[1], query.shape[2], key.shape[2])


def in_eights(tensors: Iterable[Tensor]) -> bool:
    """Whether 8 divides all strides but those of columns."""
    return all(stride % 8 == 0 for t in tensors for stride in t.stride()[:3])


def describable(t: Tensor) -> bool:
    """What the hardware asks of a tensor that is fetched by descriptor."""
    outer = zip(t.shape[:3], t.stride()[:3], strict=True)
    aligned = all(size == 1 or (stride > 0 and stride * t.element_size() % 16 == 0) for size, stride in outer)
    return t.numel() > 0 and t.stride(3) == 1 and aligned and t.data_ptr() % 16 == 0


def descriptors(t: Tensor, rows: int, head_dim: HeadDim) -> list[Any]:
    """One descriptor for each chunk of columns, None for a chunk that is not there: each costs the host time."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    # the stride of a size-1 axis is arbitrary in torch, and checked all the same
    legal = 16 // t.element_size()
    row_strides = [legal if size == 1 else stride for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True)]
    strides, shape = [*row_strides, 1], list(t.shape)
    made = [TensorDescriptor(t, shape, strides, [1, 1, rows, chunk.width]) for chunk in head_dim.chunks]
    return [*made, *[None] * (MAX_CHUNKS - len(made))]


def mask_kind(mask: Tensor | None) -> int:
    if mask is None:
        return NO_MASK
    return BOOL_MASK if mask.dtype == torch.bool else ADDED_MASK


def in_quarters(call: AttentionCall) -> bool:
    """Whether scores are in quarters of a nat, since something is added to them that may be large, or in base 2."""
    return call.key_bias is not None or (call.mask is not None and mask_kind(call.mask) == ADDED_MASK)


def scale_arguments(
    scale: float | Tensor | None, head_dim: int, *, quarters: bool
) -> tuple[Tensor | None, float, int, int | None]:
    """What a `Scale` holds. A tensor stays on the device, as reading it would wait for the GPU.

    A plain tuple, since calls with a plan make it too, and a NamedTuple takes the host longer. The factor brings
    products to the unit of the scores: base 2, or `quarters` of a nat.
    """
    if isinstance(scale, Tensor):
        *of_samples, stride = broadcast_strides(scale) or (0,)
        return scale, 0.0, stride, (of_samples[0] or None) if of_samples else None
    unit = 0.25 if quarters else LOG2E
    factor = (1.0 / math.sqrt(head_dim) if scale is None else scale) * unit
    if -LEAST_NORMAL < factor < LEAST_NORMAL:
        factor = 0.0  # as the GPU has what is below the normal float32 range; Triton's interpreter computes in float64
    return None, factor, 0, None
