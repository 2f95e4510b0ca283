"""A kernel ready to run: its decoded code in the format of the machine, and the findings and counts of a run."""

from __future__ import annotations

import copy
import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from . import build
from .decode import KINDS, decode
from .parse import Kernel, UnknownPtx, parse

INSTRUCTION = np.dtype(
    [("run", "u8"), ("guard", "i4"), ("negated", "i4"), ("num_dst", "i4"), ("num_src", "i4"), ("reg", "u8"),
     ("imm", "i8"), ("imm2", "i8"), ("flags", "u4"), ("kind", "u4")]
)  # fmt: skip
LIMIT = 200_000_000  # warp instructions in one run; more count as an endless kernel


class Allocation(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64), ("size", ctypes.c_uint64),
        ("unwritten", ctypes.c_void_p), ("owner", ctypes.c_void_p),
    ]  # fmt: skip


class RawFinding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char * 32), ("text", ctypes.c_char * 400),
        *((n, ctypes.c_int64) for n in ("pc", "other_pc", "thread", "other_thread", "block")),
        ("address", ctypes.c_uint64),
    ]  # fmt: skip


class RawCounts(ctypes.Structure):
    NUMBERS = (
        "global_requests", "global_sectors", "global_ideal", "shared_requests", "shared_wavefronts", "shared_ideal",
        "contested", "steps",
    )  # fmt: skip
    _fields_ = [("executed", ctypes.c_uint64 * 16), *((n, ctypes.c_uint64) for n in NUMBERS)]


class Finding(RuntimeError):
    """A fault of a kernel: what, where in its source, in which thread, and with which access it conflicts."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass
class Counts:
    """Executed warp instructions, and how memory was used."""

    executed: dict[str, int]
    global_requests: int = 0
    global_sectors: int = 0
    global_ideal: int = 0  # the fewest sectors that hold the same bytes
    shared_requests: int = 0
    shared_wavefronts: int = 0
    shared_ideal: int = 0  # without bank conflicts
    contested: int = 0  # bytes that lanes of one store wrote differently: PTX does not define which lane wins
    steps: int = 0

    def __add__(self, other: Counts) -> Counts:
        executed = {k: self.executed.get(k, 0) + other.executed.get(k, 0) for k in self.executed | other.executed}
        rest = [f.name for f in fields(self)][1:]
        return Counts(executed, **{n: getattr(self, n) + getattr(other, n) for n in rest})


@functools.cache
def machine() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build.library("machine", sorted(Path(build.HERE, "machine").glob("*.c")))))
    lib.find_handler.restype = lib.machine_new.restype = lib.insn_size.restype = ctypes.c_size_t
    lib.machine_finding.restype, lib.machine_counts.restype = ctypes.POINTER(RawFinding), ctypes.POINTER(RawCounts)
    assert lib.insn_size() == INSTRUCTION.itemsize, "program.py and machine.h differ"
    return lib


@functools.cache
def handler(name: str) -> int:
    found = machine().find_handler(name.encode())
    if not found:
        raise UnknownPtx(f"the machine has no handler {name!r}")
    return found


class Program:
    """One compiled kernel."""

    def __init__(self, text: str):
        self.text = text
        self.kernel: Kernel = parse(text)
        decoded, self.operands = decode(self.kernel)
        registers: list[int] = []
        self.code = np.zeros(len(decoded) + 1, INSTRUCTION)
        offsets = []
        for row, d, i in zip(self.code, decoded, self.kernel.code, strict=False):
            guard = -1 if i.guard is None else self.operands.units[i.guard]
            offsets.append(len(registers))
            registers += [*d.dst, *d.src, *d.more]
            number = (handler(d.handler), guard, i.negated, len(d.dst), len(d.src), 0, d.imm, d.imm2, d.flags)
            for name, value in zip(INSTRUCTION.names, (*number, KINDS.index(d.kind)), strict=True):
                row[name] = value
        self.registers = np.array(registers or [0], np.int32)
        self.code["reg"][: len(offsets)] = self.registers.ctypes.data + 4 * np.array(offsets, np.uint64)
        units, values = self.operands.constant_tables()
        self.constant_units, self.constants = np.array(units, np.uint32), np.array(values, np.uint64)

    def changed(self, index: int, fault: str) -> Program:
        """A copy of the program in which one instruction differs.

        The instruction is "removed"; "unguarded": all threads execute it; "yes": a wait that ends at once; "trap": a
        finding if it is reached; "trap guard": a finding if its guard excludes a thread.
        """
        other = copy.copy(self)
        other.code = self.code.copy()
        row = other.code[index]
        if fault == "unguarded":
            row["guard"] = -1
        elif fault == "yes":
            row["run"], row["num_src"] = handler("yes"), 0
        elif fault.startswith("trap"):
            row["run"], row["num_dst"], row["num_src"] = handler("trap"), 0, 0
            row["negated"] ^= fault == "trap guard"
        else:
            row["run"], row["guard"], row["num_dst"], row["num_src"] = handler("nothing"), -1, 0, 0
        return other

    def run(
        self, grid: Sequence[int], shared: int, params: Sequence[bytes], memory: ctypes.Array, seed: int = 0,
        limit: int | None = None,
    ) -> Counts:  # fmt: skip
        """Run all blocks, one after the other; raises `Finding` at the first fault."""
        lib = machine()
        size = sum(map(len, params)) + 128 * (len(params) + 2)
        raw = ctypes.create_string_buffer(size)
        start = -ctypes.addressof(raw) % 128
        for p, value in zip(self.kernel.parameters, params, strict=True):
            ctypes.memmove(ctypes.addressof(raw) + start + p.offset, value, p.size)
        warps = self.kernel.threads // 32
        state = ctypes.c_void_p(
            lib.machine_new(_pointer(self.code), len(self.code) - 1, self.operands.num_units, warps)
        )
        try:
            blocks = grid[0] * grid[1] * grid[2]
            failed = lib.machine_run(
                state, (ctypes.c_uint32 * 3)(*grid), ctypes.c_uint64(0), ctypes.c_uint64(blocks), shared,
                ctypes.c_void_p(ctypes.addressof(raw) + start), ctypes.c_uint64(size - 128),
                _pointer(self.constant_units), _pointer(self.constants), len(self.constants),
                memory, len(memory), ctypes.c_uint64(limit or LIMIT), seed,
            )  # fmt: skip
            if failed:
                raise self._finding(lib.machine_finding(state).contents)
            counts = lib.machine_counts(state).contents
            rest = {n: getattr(counts, n) for n in RawCounts.NUMBERS}
            return Counts(dict(zip(KINDS, counts.executed, strict=False)), **rest)
        finally:
            for a in memory:
                lib.allocation_done(ctypes.byref(a))
            lib.machine_free(state)

    def _finding(self, f: RawFinding) -> Finding:
        code = self.kernel.code
        where = f"  kernel {self.kernel.name} ({self.kernel.target}), program {f.block}"
        lines = [f"{f.kind.decode()}: {f.text.decode()}", where]
        if 0 <= f.pc < len(code):
            lines.append(f"  at {code[f.pc]}")
        if f.thread >= 0:
            lines.append(f"  thread {f.thread} (warp {f.thread // 32}, lane {f.thread % 32}), address {f.address:#x}")
        if 0 <= f.other_pc < len(code) and (f.other_thread >= 0 or f.other_pc > 0):
            who = f"thread {f.other_thread} at " if f.other_thread >= 0 else ""
            lines.append(f"  conflicts with {who}{code[f.other_pc]}")
        return Finding(f.kind.decode(), "\n".join(lines))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
