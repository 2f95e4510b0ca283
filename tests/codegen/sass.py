"""Read the machine code of an NVIDIA kernel, whichever compiler made it.

Triton's wheel contains NVIDIA's disassembler. The text is that of `nvdisasm -c -ndf`, with or
without `-hex`.
"""

from __future__ import annotations

import collections
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import triton.backends

TOOLS = Path(next(iter(triton.backends.__path__)), "nvidia", "bin")
MATRIX = ("HGMMA", "HMMA", "UTCHMMA", "OMMA", "QGMMA", "UTCQMMA")

_LABEL = re.compile(r"\s*(\.L_?\w+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*)")
_SECOND_WORD = re.compile(r"\s*/\* (0x[0-9a-f]{16}) \*/\s*$")  # of 128 bits


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers, for example "HGMMA.64x128x16.F32"
    operands: str
    predicated: bool
    control: int = 0  # the bits by which the assembler schedules; 0 if the text has no hexadecimal code

    @property
    def name(self) -> str:
        """The opcode by which instructions are counted."""
        parts = self.opcode.split(".")
        return f"MUFU.{parts[1]}" if parts[0] == "MUFU" else parts[0]


@dataclass(frozen=True)
class Listing:
    """The instructions of a kernel, and those of its hottest loop in their order."""

    instructions: Sequence[Instruction]
    loop: Sequence[Instruction]

    @property
    def spills(self) -> int:
        """Instructions that access local memory."""
        return sum(i.name in ("STL", "LDL") for i in self.instructions)

    @property
    def loop_registers(self) -> int:
        """The registers up to the highest that the loop names.

        The warps of a kernel may have more than its launch gave them (USETMAXREG), or use fewer than others.
        """
        named = (re.findall(r"\bR(\d+)\b", i.operands) for i in self.loop)
        return 1 + max((int(number) for numbers in named for number in numbers), default=-1)

    @property
    def exp_in_flight(self) -> int:
        """Exponentials that a warp computes in the loop while its own matrix products run (Hopper)."""
        return exp_in_flight(self.loop)

    @property
    def arrivals(self) -> int:
        """Barriers in the loop at which a warp arrives without a wait: groups of warps that take turns have them."""
        return sum(i.opcode.startswith("BAR.ARV") for i in self.loop)


def histogram(code: Sequence[Instruction]) -> collections.Counter[str]:
    return collections.Counter(i.name for i in code)


def disassemble(cubin: bytes) -> str:
    return _run("nvdisasm", ["-c", "-ndf", "-hex"], cubin)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread (REG), bytes of stack (STACK) and of static shared memory (SHARED) of the only kernel.

    Raises:
        ValueError: the file has another number of kernels.
    """
    text = _run("cuobjdump", ["-res-usage"], cubin)
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if len(found) != 1:
        raise ValueError(f"cubin: expected one kernel, got {len(found)}")
    return dict(zip(("REG", "STACK", "SHARED"), map(int, found[0]), strict=True))


def _run(tool: str, options: list[str], cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        done = subprocess.run([TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True)
    finally:
        os.unlink(file.name)
    return done.stdout


def read(text: str) -> Listing:
    """Find the hottest loop: the innermost with the most matrix instructions, or FMA instructions if it has none."""
    labels: dict[str, int] = {}
    code: list[Instruction] = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        found = _INSTRUCTION.search(line)
        if label:
            labels[label.group(1)] = len(code)
        elif found:
            code.append(Instruction(found.group(2), found.group(3).strip(), found.group(1) is not None))
        elif code and (word := _SECOND_WORD.match(line)):
            code[-1] = replace(code[-1], control=int(word.group(1), 16) >> 41)
    loops = []
    for i, instruction in enumerate(code):
        target = re.search(r"\((\.L_?\w+)\)", instruction.operands) if instruction.name == "BRA" else None
        start = labels.get(target.group(1), i + 1) if target else i + 1
        # Waiting loops are placed after the program's EXIT and jump back into it: these are no loops over the program.
        if start <= i and not any(c.name == "EXIT" and not c.predicated for c in code[start:i]):
            loops.append((start, i + 1))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] and _work(code, b) for b in loops)]
    best = max(inner, key=lambda a: _work(code, a), default=(0, 0))
    return Listing(code, code[slice(*best)])


def exp_in_flight(loop: Sequence[Instruction]) -> int:
    """HGMMA with gsb0 ends a group of products; WARPGROUP.DEPBAR waits until at most n groups are running."""
    running = found = 0
    for _ in range(2):  # the second pass starts with what the first left running
        found = 0
        for instruction in loop:
            if instruction.name == "HGMMA" and "gsb0" in instruction.operands:
                running += 1
            elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
                running = min(running, int(instruction.operands.split(",")[-1], 16))
            elif instruction.name == "MUFU.EX2":
                found += running > 0
    return found


def _work(code: list[Instruction], loop: tuple[int, int]) -> tuple[int, ...]:
    ops = histogram(code[slice(*loop)])
    work = (sum(ops[m] for m in MATRIX), ops["FFMA"])
    return work if any(work) else ()
