"""Compile what a launch would compile, without a GPU, and read the machine code.

Triton's wheel contains the assembler and the disassembler for NVIDIA, and LLVM for AMD.
"""

from __future__ import annotations

import collections
import contextlib
import io
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from entropy_attn.kernels.common.arguments import compile_options
from entropy_attn.kernels.common.plans import is_descriptor
from entropy_attn.kernels.common.targets import SHARED_MEMORY
from entropy_attn.kernels.forward.configs import ForwardConfig
from entropy_attn.kernels.forward.launch import ForwardCall

from . import sass
from .sass import MATRIX

GPU_TARGETS = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 89, 90, 100, 120)}
GPU_TARGETS["gfx942"] = GPUTarget("hip", "gfx942", 64)
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.bool: "i1"}
PACKED = ("FFMA2", "FMUL2", "FADD2")


@dataclass
class Code:
    """The compiled code of one kernel, with counts of opcodes in the program and in its hottest loop."""

    registers: int
    spilled: int | None  # bytes on NVIDIA, registers on AMD; None: the compiler did not say
    stack: int  # bytes of local memory
    shared: int  # bytes
    warnings: list[str] = field(default_factory=list)
    program: collections.Counter = field(default_factory=collections.Counter)
    loop: collections.Counter = field(default_factory=collections.Counter)
    listing: sass.Listing = field(
        default_factory=lambda: sass.Listing((), ())
    )  # the instructions in their order (NVIDIA)

    @property
    def exp_in_flight(self) -> int:
        """Exponentials that the loop computes while matrix products run (Hopper)."""
        return self.listing.exp_in_flight

    @property
    def matrix_instructions(self) -> int:
        return sum(n for op, n in self.loop.items() if op in MATRIX or op.startswith("v_mfma"))


def assert_clean(code: Code, target: str) -> None:
    """Local memory is not used, and shared memory is within the target's limit."""
    assert code.stack == 0 and code.spilled == 0, f"{code.spilled} spilled, {code.stack} bytes of stack"
    assert code.program["STL"] == code.program["LDL"] == 0, "local memory is used"
    assert code.program["scratch_load_dword"] == code.program["scratch_store_dword"] == 0, "scratch memory is used"
    assert code.shared <= SHARED_MEMORY[target], f"{code.shared} bytes of shared memory"


def compile_call(call: ForwardCall, config: ForwardConfig) -> Code:
    """Compile the forward kernel as the launch of a call would."""
    kernel, arguments = call.arguments(config)
    options = compile_options(config, call.target, by_pointer=not config.descriptors)
    return compile_kernel(kernel, arguments, call.target, options)


def compile_kernel(kernel: Any, arguments: dict[str, Any], target: str, options: dict) -> Code:
    """Compile a jitted kernel for these launch arguments, given by name."""
    hip = target.startswith("gfx")
    signature, constexprs, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constexprs[(i,)] = "constexpr", value
        elif isinstance(value, tuple):
            types = []
            for j, item in enumerate(value):
                types.append(_specialized(item, hip, (i, j), constexprs, attributes))
            signature[parameter.name] = type(value)(*types)
        else:
            signature[parameter.name] = _specialized(value, hip, (i,), constexprs, attributes)
    source = _source_class(kernel)(kernel, signature, constexprs, attributes)
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        compiled = triton_compile(source, target=GPU_TARGETS[target], options=options)
    shared = compiled.metadata.shared
    if hip:
        return _read_amd(compiled.asm["amdgcn"], shared)
    return _read_nvidia(compiled.asm["cubin"], log.getvalue(), shared)


def _source_class(kernel: Any) -> type[ASTSource]:
    if not kernel.is_gluon():
        return ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def _specialized(value: object, hip: bool, path: tuple[int, ...], constexprs: dict, attributes: dict) -> str:
    """The type of a run-time argument or of an item of a tuple; facts about its value are added to the dicts."""
    kind, attribute = _argument_type(value, hip)
    if kind == "constexpr":
        constexprs[path] = value
    elif attribute:
        attributes[path] = attribute
    return kind


def _argument_type(value: object, hip: bool) -> tuple[str, list]:
    """The type for which Triton's launcher would specialize a run-time argument, and the facts about its value."""
    aligned = [["tt.divisibility", 16]]
    if value is None:
        return "constexpr", []
    if isinstance(value, Tensor):
        small = [["tt.pointer_range", 32]] if hip else []
        return "*" + TYPES[value.dtype], aligned + small
    if is_descriptor(value):
        layout = f",{value.layout!r}" if hasattr(value, "layout") else ""  # Gluon's have one
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}{layout}>", []
    if isinstance(value, float):
        return "fp32", []
    if value == 1:
        return "constexpr", []
    return ("i32" if abs(value) < 2**31 else "i64"), aligned if value % 16 == 0 else []


def _read_nvidia(cubin: bytes, log: str, shared: int) -> Code:
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    stack, stores, loads = map(int, frame.groups())
    registers = int(re.search(r"Used (\d+) registers", log).group(1))
    warnings = sorted(set(re.findall(r"\(C\d+\)[^\n]*", log)))
    listing = sass.read(sass.disassemble(cubin))
    return Code(
        registers=registers,
        spilled=stores + loads,
        stack=stack,
        shared=shared,
        warnings=warnings,
        program=sass.histogram(listing.instructions),
        loop=sass.histogram(listing.loop),
        listing=listing,
    )


def _read_amd(assembly: str, shared: int) -> Code:
    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:?\s+(\d+)", assembly).group(1))

    lines = assembly.splitlines()
    ops = re.compile(r"\s+([a-z]+_[a-z0-9_]+)")
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := re.match(r"(\.LBB\w+):", line))}
    loops = []
    for i, line in enumerate(lines):
        jump = re.match(r"\s+s_c?branch\w*\s+(\.LBB\w+)", line)
        if jump and labels.get(jump.group(1), i + 1) <= i:
            loops.append((labels[jump.group(1)], i + 1))

    def histogram(a: int, b: int) -> collections.Counter:
        return collections.Counter(m.group(1) for line in lines[a:b] if (m := ops.match(line)))

    def matrix(loop: tuple[int, int]) -> int:
        return sum(n for op, n in histogram(*loop).items() if op.startswith("v_mfma"))

    best = max(loops, key=lambda a: (matrix(a) > 0, -(a[1] - a[0])), default=(0, 0))
    return Code(
        registers=number("vgpr_count"),
        spilled=number("vgpr_spill_count"),  # scalar registers spill to lanes of vector registers
        stack=number("private_segment_fixed_size"),
        shared=shared,
        program=histogram(0, len(lines)),
        loop=histogram(*best),
    )
