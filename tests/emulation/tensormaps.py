"""Tensor maps in the format of the emulated card: encodes the driver's call, and checks the rules of the driver."""

from __future__ import annotations

import ctypes
from typing import Any

ENCODED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint), ctypes.c_int,
    ctypes.c_int, ctypes.c_int,
)  # fmt: skip
ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4, 11: 4, 12: 4}
SWIZZLE_BYTES = {0: 0, 1: 32, 2: 64, 3: 128}
INVALID = 1  # CUDA_ERROR_INVALID_VALUE


class TensorMap(ctypes.Structure):
    """The layout that machine/tensor.c reads."""

    _fields_ = [
        ("address", ctypes.c_uint64), ("strides", ctypes.c_uint64 * 4), ("sizes", ctypes.c_uint32 * 5),
        ("box", ctypes.c_uint32 * 5), ("steps", ctypes.c_uint32 * 5), ("rank", ctypes.c_uint8),
        ("type", ctypes.c_uint8), ("interleave", ctypes.c_uint8), ("swizzle", ctypes.c_uint8),
        ("fill", ctypes.c_uint8),
    ]  # fmt: skip


problems: list[str] = []


def encode(
    to: int, kind: int, rank: int, address: int, sizes: Any, strides: Any, box: Any, steps: Any, interleave: int,
    swizzle: int, fill: int,
) -> int:  # fmt: skip
    """Checks CUDA's rules for cuTensorMapEncodeTiled (CUDA driver API, tensor map object management)."""
    sizes, box, steps = list(sizes[:rank]), list(box[:rank]), list(steps[:rank])
    strides = list(strides[: rank - 1])
    element, width = ELEMENT_BYTES.get(kind), SWIZZLE_BYTES.get(swizzle)
    broken = [
        text
        for bad, text in (
            (not 1 <= rank <= 5, f"rank {rank}"),
            (
                element is None or width is None or interleave,
                f"type {kind}, swizzle {swizzle}, interleave {interleave}",
            ),
            (address % 16, f"address {address:#x} is not aligned to 16 bytes"),
            (any(not 1 <= n <= 2**32 for n in sizes), f"sizes {sizes}"),
            (any(s % 16 or not 0 < s < 2**40 for s in strides), f"strides {strides}"),
            (any(not 1 <= n <= 256 for n in box), f"box {box}"),
            (any(n != 1 for n in steps), f"element strides {steps}"),
        )
        if bad
    ]
    if not broken and (box[0] * element) % 16:
        broken.append(f"a row of {box[0] * element} bytes in the box")
    if not broken and width and box[0] * element > width:
        broken.append(f"a row of {box[0] * element} bytes in the box is wider than the swizzle's {width}")
    if broken:
        problems.append("; ".join(broken))
        return INVALID
    made = TensorMap(address=address, rank=rank, type=kind, swizzle=swizzle, fill=fill)
    made.sizes[:rank], made.box[:rank], made.steps[:rank] = [n % 2**32 for n in sizes], box, steps
    made.strides[: rank - 1] = strides
    ctypes.memmove(to, ctypes.byref(made), ctypes.sizeof(made))
    return 0
