"""The arguments of the Gluon kernel for a call, and why a call is none for it."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ..common.arguments import describable, lengths
from ..common.call import AttentionCall
from ..common.head_dims import MAX_CHUNKS, in_chunks
from ..common.support import triton_version
from ..common.tensors import HeadDim, Scale
from .configs import PRODUCER_REGISTERS, ROWS, Tiles
from .parts import Options

NEEDED = {
    "triton.experimental.gluon": ("jit",),
    "triton.experimental.gluon.nvidia.hopper": ("TensorDescriptor",),
    "triton.experimental.gluon.language": (
        "warp_specialize", "NVMMASharedLayout", "NVMMADistributedLayout", "DotOperandLayout",
    ),
    "triton.experimental.gluon.language.nvidia.hopper": (
        "fence_async_shared", "mbarrier", "tma", "warpgroup_mma", "warpgroup_mma_wait",
    ),
}  # fmt: skip


def unsupported_reasons(call: AttentionCall, target: str) -> list[str]:
    """Every reason why this kernel cannot serve a call that the forward kernels serve; empty where it can."""
    if target != "sm_90":
        return [f"it is for sm_90 (Hopper), and the target is {target}"]
    reasons = list(missing_in_triton())
    query, key, value = call.query, call.key, call.value
    if query.dtype == torch.float32:
        reasons.append("wgmma multiplies float16 and bfloat16, and the query is float32")
    if call.mask is not None:
        reasons.append("a mask would be fetched between the products of every block: use another schedule for masks")
    if call.key_groups:
        reasons.append("it knows no key_scale and key_bias: use another schedule for them")
    if call.row_statistics:
        reasons.append("it knows no variance, maximum and mass of rows: use another schedule for them")
    if query.shape[3] != value.shape[3]:
        widths = f"{query.shape[3]} of query and {value.shape[3]} of value"
        reasons.append(f"the output takes the place of the queries, and the head dims differ: {widths}")
    reasons += [
        f"{name} needs a unit last stride, 16-byte aligned data and strides, and at least one row; got strides "
        f"{t.stride()} and shape {tuple(t.shape)}"
        for name, t in (("query", query), ("key", key), ("value", value))
        if not describable(t)
    ]
    return reasons


@functools.cache
def missing_in_triton() -> tuple[str, ...]:
    """What the kernel needs of Gluon and the installed Triton does not have, as reasons."""
    missing = []
    for module, names in NEEDED.items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            missing.append(module)
        else:
            missing += [f"{module}.{name}" for name in names if not hasattr(found, name)]
    version = ".".join(map(str, triton_version())) or "of unknown version"
    return (f"Triton {version} has no {', '.join(missing)}: use 3.6 or later",) if missing else ()


def kernel_arguments(
    call: AttentionCall, outputs: tuple[Tensor, Tensor | None, Tensor | None], scale: Scale, tiles: Tiles
) -> tuple[Any, dict[str, Any]]:
    """The kernel, and its arguments by name. `outputs` are output, lse and entropy."""
    from .kernel import attention_forward_pingpong

    out, lse, entropy = outputs
    head_dim = in_chunks(call.query.shape[3])
    sizes = lengths(call.query, call.key)
    arguments: dict[str, Any] = {
        "lse_ptr": lse,
        "entropy_ptr": entropy,
        "scale": scale,
        "lengths": sizes,
        "D": head_dim,
        "OPTIONS": Options(
            GROUPS=tiles.groups,
            BLOCK_N=tiles.block_n,
            STAGES=tiles.stages,
            IS_CAUSAL=call.is_causal,
            SCALE_SIGN=0 if scale.ptr is not None else -1 if scale.factor < 0 else 1,  # a tensor's is on the device
            WIDTH=head_dim.width,
            CHECK_KEYS=call.is_causal or sizes.seqlen_k % tiles.block_n != 0,
        ),
        "CONSUMER_REGISTERS": tiles.consumer_registers,
        "PRODUCER_REGISTERS": PRODUCER_REGISTERS,
    }
    tensors = {"q": (call.query, ROWS), "k": (call.key, tiles.block_n), "v": (call.value, tiles.block_n)}
    for name, (tensor, rows) in (tensors | {"out": (out, ROWS)}).items():
        for i, each in enumerate(_descriptors(tensor, rows, head_dim)):
            arguments[f"{name}{i}"] = each
    return attention_forward_pingpong, arguments


def _descriptors(t: Tensor, rows: int, head_dim: HeadDim) -> list[Any]:
    """One for each chunk of columns, with the widest swizzle that a row of it allows."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    legal = 16 // t.element_size()
    strides = [legal if size == 1 else stride for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True)]
    made = []
    for chunk in head_dim.chunks:
        layout = NVMMASharedLayout(min(128, chunk.width * t.element_size()), 8 * t.element_size(), 4)
        made.append(TensorDescriptor(t, list(t.shape), [*strides, 1], [1, 1, rows, chunk.width], layout))
    return [*made, *[None] * (MAX_CHUNKS - len(made))]
