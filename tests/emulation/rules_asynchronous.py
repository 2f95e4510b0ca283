"""Rules for copies by cp.async and TMA, for tensor maps, and for wgmma."""

from __future__ import annotations

import re

from .decode import A_IN_REGISTERS, ALL, BF16, TRANS, Decoded, only, rule
from .operands import Operands, vector
from .parse import Instruction, split_operands


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
    if m[:2] == ["async", "bulk"]:
        return _bulk(o, i, m[2:])
    return None


def _bulk(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    m = ["shared::cta" if each == "shared::cluster" else each for each in m]  # a cluster is one CTA here
    loads = ["tensor", "shared::cta", "global", "mbarrier::complete_tx::bytes"]
    if m[:1] == ["tensor"] and [x for x in m if x not in ("1d", "2d", "3d", "4d", "5d", "tile")] == loads:
        to, offset = o.address(i.args[0], False, i)
        bar, bar_offset = o.address(i.args[2], False, i)
        map_, coordinates = split_operands(i.args[1].strip("[] "))
        if offset or bar_offset:
            return None
        sources = [to, o.read(map_, "u64", i), bar, *(o.read(c, "s32", i) for c in vector(coordinates))]
        return Decoded("tma.load", "copy", [], sources)
    stores = ["tensor", "global", "shared::cta", "bulk_group"]
    if m[:1] == ["tensor"] and [x for x in m if x not in ("1d", "2d", "3d", "4d", "5d", "tile")] == stores:
        source, offset = o.address(i.args[1], False, i)
        map_, coordinates = split_operands(i.args[0].strip("[] "))
        sources = [source, o.read(map_, "u64", i), *(o.read(c, "s32", i) for c in vector(coordinates))]
        return None if offset else Decoded("tma.store", "copy", [], sources)
    if m == ["commit_group"]:
        return Decoded("bulk.commit", "copy")
    if m in (["wait_group", "read"], ["wait_group"]):
        return Decoded("bulk.wait", "copy", imm=int(i.args[0], 0))
    return None


FIELDS = ["global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype"]
FIELDS += ["interleave_layout", "swizzle_mode", "fill_mode"]


@rule("tensormap")
def tensor_map(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    if m[0] == "cp_fenceproxy":
        if m[1:] != ["global", "shared::cta", "tensormap::generic", "release", "gpu", "sync", "aligned"]:
            return None
        (to, a), (source, b) = o.address(i.args[0], True, i), o.address(i.args[1], True, i)
        return None if a or b else Decoded("tensormap.publish", "copy", [], [to, source])
    if m[:2] != ["replace", "tile"] or m[2] not in FIELDS or m[3:5] != ["shared::cta", "b1024"]:
        return None
    base, offset = o.address(i.args[0], True, i)
    dimension = int(i.args[1], 0) if len(i.args) == 3 else 0
    value = o.read(i.args[-1], m[5], i)
    return None if offset else Decoded("tensormap.replace", "other", [], [base, value], FIELDS.index(m[2]), dimension)


@rule("wgmma")
def warp_group_products(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    if m[0] != "mma_async":
        if m[1:] != ["sync", "aligned"] or m[0] not in ("fence", "commit_group", "wait_group"):
            return None
        return Decoded(f"wgmma.{m[0]}", "barrier", imm=int(i.args[0], 0) if i.args else 0)
    shape = re.fullmatch(r"m64n(\d+)k16", m[3])
    if m[1:3] != ["sync", "aligned"] or not shape or m[4:] not in (["f32", "f16", "f16"], ["f32", "bf16", "bf16"]):
        return None
    to, a, b, adds, *signs = i.args
    in_registers = a.startswith("{")
    if signs[:2] != ["1", "1"] or len(signs) != (3 if in_registers else 4):
        return None
    flags = (BF16 if m[5] == "bf16" else 0) | (TRANS if signs[-1] == "1" else 0)
    accumulators = [o.write(r, i) for r in vector(to)]
    sources = [o.read(b, "u64", i), o.read(adds, "pred", i)]
    if in_registers:
        flags |= A_IN_REGISTERS
        more = [*accumulators, *(o.read(r, "b32", i) for r in vector(a))]
    else:
        flags |= ALL if signs[2] == "1" else 0
        sources, more = [o.read(a, "u64", i), *sources], accumulators
    return Decoded("wgmma.mma_async", "matrix", [], sources, int(shape.group(1)), len(accumulators), flags, more)
