"""Runs a few lines of PTX, for tests of single instructions and single checks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from .memory import Memory
from .program import Counts, Program

HEAD = """.version 8.7
.target {target}
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry snippet(
	.param .u64 .ptr .global .align 1 snippet_param_0,
	.param .u64 .ptr .global .align 1 snippet_param_1
)
.reqntid {threads}
{{
	.reg .pred %p<32>;
	.reg .b16 %rs<64>;
	.reg .b32 %r<256>;
	.reg .b64 %rd<64>;
	ld.param.b64 %rd0, [snippet_param_0];
	ld.param.b64 %rd1, [snippet_param_1];
	mov.u32 %r0, %tid.x;
	mov.b32 %r255, global_smem;
{body}
	ret;
}}
"""


def run(
    body: str, given: np.ndarray, out_bytes: int, threads: int = 32, shared: int = 4096, target: str = "sm_90a",
    grid: tuple[int, int, int] = (1, 1, 1), written: bool = True,
) -> tuple[np.ndarray, Counts]:  # fmt: skip
    """`given` is at %rd0, the bytes of the result at %rd1, the index of the thread in %r0, shared memory at %r255."""
    source = torch.from_numpy(np.ascontiguousarray(given).view(np.uint8).copy())
    result = torch.zeros(out_bytes, dtype=torch.uint8)
    memory = Memory()
    memory.add(source)
    memory.add(result, written)
    program = Program(HEAD.format(target=target, threads=threads, body=body))
    params = [t.data_ptr().to_bytes(8, "little") for t in (source, result)]
    counts = program.run(grid, shared, params, memory.table())
    return result.numpy(), counts


def compute(
    instruction: str, operands: Sequence[Sequence[int]], result: str = "b32", kinds: Sequence[str] = ()
) -> list[int]:
    """The bits of the results of one instruction, for each row of operands `a`, `b`, `c` as bit patterns.

    `d` is the destination; `kinds` are the types of the operands, b32 by default.
    """
    count = len(operands[0])
    kinds = [*kinds, *["b32"] * (count - len(kinds))]
    names = {"b16": "%rs", "b32": "%r", "b64": "%rd"}
    bases = {"b16": 2, "b32": 2, "b64": 8}
    registers, body = [], ["	mul.wide.u32 %rd2, %r0, 64;", "	add.s64 %rd3, %rd0, %rd2;"]
    for k, kind in enumerate(kinds):
        register = f"{names[kind]}{bases[kind] + 2 + k}"
        registers.append(register)
        body.append(f"	ld.global.{kind} {register}, [%rd3+{8 * k}];")
    if result == "pred":
        to, store = "%p1", ["	selp.b32 %r20, 1, 0, %p1;", "	st.global.b32 [%rd4], %r20;"]
    else:
        to = f"{names[result]}20"
        store = [f"	st.global.{result} [%rd4], {to};"]
    words = dict(zip("abc", registers, strict=False)) | {"d": to}
    body.append("	" + re.sub(r"\b[abcd]\b(?!\.)", lambda m: words[m.group()], instruction) + ";")
    body += ["	mul.wide.u32 %rd5, %r0, 8;", "	add.s64 %rd4, %rd1, %rd5;", *store]
    rows = np.zeros((32, 8), np.uint64)
    rows[: len(operands), :count] = np.array(operands, np.uint64)
    rows[len(operands) :, :count] = rows[0, :count]
    bits, _ = run("\n".join(body), rows, 256)
    size = {"b16": 2, "b32": 4, "b64": 8, "pred": 4}[result]
    return [int.from_bytes(bits[8 * k : 8 * k + size].tobytes(), "little") for k in range(len(operands))]
