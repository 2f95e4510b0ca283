"""Compares what the driver received with the PTX of the kernel and the arguments of the launch."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .parse import Kernel
from .program import Finding

PACKED = {"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "?", "u8": "B", "u16": "H", "u32": "I"}
PACKED |= {"u64": "Q", "fp32": "f", "f32": "f", "fp64": "d"}
TENSOR_MAP_BYTES = 128


def wrong(kernel: Kernel, message: str) -> Finding:
    return Finding("launch", f"launch: {message}\n  kernel {kernel.name} ({kernel.target})")


def read_parameters(kernel: Kernel, addresses: Any) -> list[bytes]:
    """The bytes of each parameter, with the sizes that the PTX declares."""
    values = []
    for k, p in enumerate(kernel.parameters):
        if addresses[k] is None or (p.align > 8 and addresses[k] % min(p.align, 64)):
            raise wrong(kernel, f"parameter {k} ({p.name}) is at {addresses[k]}, and needs an alignment of {p.align}")
        values.append(ctypes.string_at(addresses[k], p.size))
    return values


def check_shape(kernel: Kernel, block: Sequence[int], shared: int, most_shared: int, attributes: int) -> None:
    if list(block) != [kernel.threads, 1, 1]:
        raise wrong(kernel, f"a block of {tuple(block)} threads; the kernel was compiled for {kernel.threads}")
    if shared > most_shared:
        raise wrong(kernel, f"{shared} bytes of shared memory of the card's {most_shared}")
    if kernel.max_registers and kernel.max_registers * kernel.threads > 65536:
        raise wrong(kernel, f"{kernel.threads} threads of up to {kernel.max_registers} registers are more than 65536")


def check_arguments(kernel: Kernel, source: Any, metadata: Any, arguments: Sequence[Any], values: list[bytes]) -> None:
    """Compare each parameter with the arguments, flattened according to Triton's signature."""
    expected = list(_flat(kernel, source, metadata, arguments))
    if len(expected) + 2 != len(kernel.parameters):  # the last two are scratch memory for the kernel and a profiler
        raise wrong(
            kernel, f"{len(kernel.parameters)} parameters; expected {len(expected)} arguments and two of scratch memory"
        )
    for k, (name, want) in enumerate(expected):
        p = kernel.parameters[k]
        if want is None:
            if p.size != TENSOR_MAP_BYTES:
                raise wrong(kernel, f"parameter {k} ({name}) has {p.size} bytes, a tensor map {TENSOR_MAP_BYTES}")
        elif len(want) != p.size or want != values[k]:
            raise wrong(kernel, f"parameter {k} ({name}) is {values[k].hex()}; the argument is {want.hex()}")


def _flat(kernel: Kernel, source: Any, metadata: Any, arguments: Sequence[Any]) -> Any:
    described = list(getattr(metadata, "tensordesc_meta", None) or [])

    def flat(path: tuple[int, ...], name: str, kind: Any, argument: Any) -> Any:
        if isinstance(kind, tuple):  # a NamedTuple
            for i, field in enumerate(kind._fields):
                yield from flat((*path, i), f"{name}.{field}", kind[i], argument[i])
            return
        assumed = ["tt.divisibility", 16] in [list(a) for a in source.attrs.get(path, [])]
        if kind == "constexpr":
            known = source.constants.get(path, argument)
            if known is not argument and known != argument:
                raise wrong(kernel, f"{name} was compiled as {known!r} and launched as {argument!r}")
        elif kind.startswith("*"):
            address = argument.data_ptr() if isinstance(argument, Tensor) else argument
            if assumed and address % 16:
                raise wrong(kernel, f"{name} was compiled as aligned to 16 bytes and is at {address:#x}")
            yield name, struct.pack("<Q", address)
        elif kind.startswith("tensordesc"):
            yield from _descriptor(name, argument, described.pop(0) if described else None)
        else:
            if assumed and argument % 16:
                raise wrong(kernel, f"{name} was compiled as a multiple of 16 and is {argument}")
            yield name, struct.pack("<" + PACKED[kind], argument)

    for index, ((name, kind), argument) in enumerate(zip(source.signature.items(), arguments, strict=True)):
        yield from flat((index,), name, kind, argument)


def _descriptor(name: str, d: Any, meta: Any) -> Any:
    shape = [(f"{name}.shape", struct.pack("<i", n)) for n in d.shape]
    strides = [(f"{name}.strides", struct.pack("<q", n)) for n in d.strides]
    if meta is not None:
        yield name, None  # the driver chooses its bytes
    else:
        yield name, struct.pack("<Q", d.base.data_ptr())
        yield from ((f"{name}.shape", struct.pack("<q", n)) for n in d.shape)
        yield from strides
        yield f"{name}.padding", struct.pack("<b", d.padding == "nan")
        if hasattr(d, "round_f32_to_tf32"):
            yield f"{name}.round", struct.pack("<b", d.round_f32_to_tf32)
    yield from shape
    yield from strides
