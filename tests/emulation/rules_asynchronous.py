"""Rules of copies by cp.async and TMA, of tensor maps, and of wgmma."""

from __future__ import annotations

from .decode import Decoded, only, rule
from .operands import Operands
from .parse import Instruction


@rule("cp")
def copies(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    if m == ["async", "commit_group"]:
        return Decoded("cp.async.commit_group", "copy")
    if m == ["async", "wait_group"]:
        return Decoded("cp.async.wait_group", "copy", imm=int(i.args[0], 0))
    if m == ["async", "wait_all"]:
        return Decoded("cp.async.wait_all", "copy")
    if m[0] == "async" and only(m[1:], "ca", "cg", "shared", "shared::cta", "global"):
        to, offset = o.address(i.args[0], False, i)
        source, source_offset = o.address(i.args[1], True, i)
        taken = [o.read(a, "u32", i) for a in i.args[3:]]
        size = int(i.args[2], 0)
        return Decoded("cp.async", "copy", [], [to, source, *taken], offset, source_offset, flags=size << 16)
    return None
