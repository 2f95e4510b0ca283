"""Operands of PTX as units of a warp's register file: registers, constants and special registers alike.

A unit is 32 lanes of 4 bytes; a 64-bit register takes two units.
"""

from __future__ import annotations

import re

from .parse import SIZES, Instruction, Kernel, UnknownPtx

SHARED_BASE = 1024  # where the shared memory of a CTA begins; the system reserves what is below
SPECIAL = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"]
SPECIAL += ["%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid", "%ntid.x", "%ntid.y", "%cluster_ctarank"]
WIDE, IS_SPECIAL = 0x8000_0000, 0x4000_0000  # flags of the unit of a constant, read by run.c


class Operands:
    """Assigns a unit to each register and each constant of a kernel."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.units: dict[str, int] = {}
        self.num_units = 2  # the first two receive results that are never read
        self.constants: dict[tuple[int, bool, bool], int] = {}  # (value, wide, special) to unit
        for name, kind in kernel.registers.items():
            self.units[name] = self.num_units
            self.num_units += 2 if SIZES[kind] == 8 else 1
        self.parameters = {p.name: p for p in kernel.parameters}

    def constant(self, value: int, wide: bool = False, special: bool = False) -> int:
        key = (value & (2**64 - 1 if wide else 2**32 - 1), wide, special)
        if key not in self.constants:
            self.constants[key] = self.num_units
            self.num_units += 2 if wide else 1
        return self.constants[key]

    def is_wide(self, text: str) -> bool:
        """Whether an operand is a register of 64 bits."""
        return SIZES[self.kernel.registers.get(text, "b32")] == 8

    def read(self, text: str, kind: str, at: Instruction) -> int:
        """The unit of a source operand that an instruction reads as `kind`, for example "u32"."""
        if text in self.units:
            if self.is_wide(text) != (SIZES[kind] == 8):  # PTX lets some instructions truncate a wider register
                raise UnknownPtx(f"{at}: {text} of {self.kernel.registers[text]} is taken as {kind}")
            return self.units[text]
        if text in SPECIAL:
            return self.constant(SPECIAL.index(text), special=True)
        wide = SIZES[kind] == 8
        if text in self.kernel.symbols:
            return self.constant(SHARED_BASE, wide)
        return self.constant(immediate(text, kind, at), wide)

    def write(self, text: str, at: Instruction, kind: str | None = None) -> int:
        if text == "_":
            return 0
        if text not in self.units:
            raise UnknownPtx(f"{at}: {text} is no register")
        if kind is not None and (SIZES[self.kernel.registers[text]] == 8) != (SIZES[kind] == 8):
            raise UnknownPtx(f"{at}: {text} of {self.kernel.registers[text]} is written as {kind}")
        return self.units[text]

    def address(self, text: str, wide: bool, at: Instruction) -> tuple[int, int]:
        """`(unit of the base, offset)` of `[base + offset]`."""
        m = re.match(r"\[\s*([%$\w:]+)\s*(?:([+-])\s*(-?\w+))?\s*\]$", text)
        if not m:
            raise UnknownPtx(f"{at}: address {text}")
        base, sign, number = m.groups()
        offset = int(number, 0) * (-1 if sign == "-" else 1) if number else 0
        return self.read(base, "u64" if wide else "u32", at), offset

    def parameter(self, text: str, at: Instruction) -> int:
        """The offset of `[name]` or `[name + offset]` in the parameters of the launch."""
        m = re.match(r"\[?\s*(\w+)\s*(?:\+\s*(\d+))?\s*\]?$", text)
        if not m or m.group(1) not in self.parameters:
            raise UnknownPtx(f"{at}: parameter {text}")
        return self.parameters[m.group(1)].offset + int(m.group(2) or 0)

    def constant_tables(self) -> tuple[list[int], list[int]]:
        """Units with their flags, and the values."""
        units = [
            unit | (WIDE if wide else 0) | (IS_SPECIAL if special else 0)
            for (_, wide, special), unit in self.constants.items()
        ]
        return units, [value for value, _, _ in self.constants]


def vector(text: str) -> list[str]:
    """The parts of `{a, b}`, or a single operand."""
    return [part.strip() for part in text.strip("{} ").split(",")] if text.startswith("{") else [text]


def immediate(text: str, kind: str, at: Instruction) -> int:
    if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", text):
        return int(text[2:], 16)
    if re.fullmatch(r"0[dD][0-9A-Fa-f]{16}", text):
        return int(text[2:], 16)
    try:
        value = int(text.rstrip("U"), 0)
    except ValueError:
        raise UnknownPtx(f"{at}: operand {text}") from None
    return int(value != 0) if kind == "pred" else value & ((1 << 8 * SIZES[kind]) - 1)
