"""Rules for memory, matrices, control flow and exchange between lanes."""

from __future__ import annotations

from .decode import ALL, ARRIVE_ONLY, BF16, SHUFFLE, SIGNED, TRANS, WIDENED, Decoded, only, rule
from .operands import Operands, vector
from .parse import SIZES, Instruction

CACHING = ("ca", "cg", "cs", "wt", "wb", "nc", "L1::evict_first", "L1::evict_last", "L1::no_allocate")


@rule("ld")
def load(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    space, *rest, t = m
    lanes = vector(i.args[0])
    wanted = [f"v{len(lanes)}"] if len(lanes) > 1 else []
    if [r for r in rest if r.startswith("v")] != wanted or not only(rest, *CACHING, *wanted):
        return None
    # into a wider register: zero-extended, or sign-extended for a signed type
    size, wide = SIZES[t], {SIZES[o.kernel.registers[a]] == 8 for a in lanes if a in o.kernel.registers}
    if len(wide) > 1 or (t[0] == "s" and size < 4):
        return None
    widened = size < 8 and wide == {True}
    to = [o.write(a, i, "b64" if widened else t) for a in lanes]
    flags = (WIDENED if widened else 0) | (SIGNED if widened and t[0] == "s" else 0)
    if space == "param":
        return Decoded("ld.param", "move", to, imm=o.parameter(i.args[1], i), imm2=size, flags=flags)
    if space == "global":
        base, offset = o.address(i.args[1], True, i)
        return Decoded("ld.global", "global load", to, [base], offset, size, flags)
    if space in ("shared", "shared::cta"):
        base, offset = o.address(i.args[1], False, i)
        return Decoded("ld.shared", "shared load", to, [base], offset, size, flags)
    return None


@rule("st")
def store(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    space, *rest, t = m
    lanes = vector(i.args[1])
    wanted = [f"v{len(lanes)}"] if len(lanes) > 1 else []
    if [r for r in rest if r.startswith("v")] != wanted or not only(rest, *CACHING, *wanted):
        return None
    wider = {o.is_wide(a) for a in lanes} if SIZES[t] < 8 else {False}  # whose low bits are stored
    if len(wider) > 1:
        return None
    flags = WIDENED if wider == {True} else 0
    values, size = [o.read(a, "b64" if flags else t, i) for a in lanes], SIZES[t]
    if space == "global":
        base, offset = o.address(i.args[0], True, i)
        return Decoded("st.global", "global store", [], [base, *values], offset, size, flags)
    if space in ("shared", "shared::cta"):
        base, offset = o.address(i.args[0], False, i)
        return Decoded("st.shared", "shared store", [], [base, *values], offset, size, flags)
    return None


@rule("ldmatrix", "stmatrix")
def matrix_access(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root = i.op.split(".")[0]
    if m[:3] != ["sync", "aligned", "m8n8"] or not only(m[3:], "x1", "x2", "x4", "trans", "shared", "b16"):
        return None
    registers, where = (i.args[0], i.args[1]) if root == "ldmatrix" else (i.args[1], i.args[0])
    base, offset = o.address(where, False, i)
    flags, parts = (TRANS if "trans" in m else 0), vector(registers)
    if f"x{len(parts)}" not in m:
        return None
    if root == "ldmatrix":
        return Decoded(root, "shared load", [o.write(p, i) for p in parts], [base], offset, flags=flags)
    return Decoded(root, "shared store", [], [base, *(o.read(p, "b32", i) for p in parts)], offset, flags=flags)


@rule("mma")
def product(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    sync, aligned, shape, row, col, d, a, b, c = m if len(m) == 9 else [""] * 9
    depth = {"m16n8k16": 16, "m16n8k8": 8}.get(shape)
    if (sync, aligned, row, col, d, c) != ("sync", "aligned", "row", "col", "f32", "f32") or a != b or depth is None:
        return None
    if a not in ("f16", "bf16"):
        return None
    to, *sources = (vector(x) for x in i.args)
    units = [o.read(r, "b32", i) for part in sources for r in part]
    return Decoded("mma.half", "matrix", [o.write(r, i) for r in to], units, depth, flags=BF16 if a == "bf16" else 0)


@rule("bra")
def branch(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    return Decoded("bra", "branch", imm=i.target) if only(m, "uni") else None


@rule("brx")
def branch_indexed(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    targets = o.kernel.tables.get(i.args[1])
    if targets is None or not only(m, "idx", "uni"):
        return None
    return Decoded("brx.idx", "branch", src=[o.read(i.args[0], "u32", i)], imm2=len(targets), more=targets)


@rule("ret", "exit")
def leave(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    return None if m else Decoded("ret", "branch")


@rule("shfl")
def shuffle(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    modes = ("idx", "bfly", "up", "down")
    if m[0] != "sync" or m[1] not in modes or m[2:] != ["b32"]:
        return None
    to = [o.write(d, i) for d in i.args[0].split("|")]
    return Decoded("shfl", "shuffle", to, [o.read(a, "b32", i) for a in i.args[1:]], modes.index(m[1]), flags=SHUFFLE)


@rule("elect")
def elect(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    to = [o.write(d.strip(), i) for d in i.args[0].split("|")]
    return Decoded("elect", "other", to, [o.read(i.args[1], "b32", i)]) if m == ["sync"] else None


@rule("vote")
def vote(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    modes = ("ballot", "any", "all")
    if m[0] != "sync" or m[1] not in modes:
        return None
    sources = [o.read(i.args[1], "pred", i), o.read(i.args[2], "b32", i)]
    return Decoded("vote", "shuffle", [o.write(i.args[0], i)], sources, modes.index(m[1]))


@rule("redux")
def reduce(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    modes = ("add", "min", "max", "and", "or", "xor")
    if m[0] != "sync" or m[1] not in modes or m[2:] not in (["s32"], ["u32"], ["b32"]):
        return None
    sources = [o.read(a, "b32", i) for a in i.args[1:]]
    return Decoded("redux", "shuffle", [o.write(i.args[0], i)], sources, modes.index(m[1]), int(m[2] == "s32"))


@rule("bar", "barrier")
def barrier(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    m = [each for each in m if each not in ("cta", "aligned")]
    if m == ["warp", "sync"]:
        return Decoded("bar.warp", "barrier", src=[o.read(i.args[0], "b32", i)])
    if m in (["sync"], ["arrive"]):
        sources = [o.read(a, "u32", i) for a in i.args]
        return Decoded("bar", "barrier", src=sources, flags=ARRIVE_ONLY if m == ["arrive"] else 0)
    return None


@rule("fence", "membar", "setmaxnreg", "prefetch", "nanosleep", "pmevent")
def fences(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    if i.op in ("fence.proxy.async", "fence.proxy.async.shared::cta"):
        return Decoded("fence.proxy.async", "barrier")
    if i.op in ("fence.mbarrier_init.release.cluster", "fence.acq_rel.cta", "fence.sc.cta", "membar.cta"):
        return Decoded("nothing", "barrier")  # within a CTA, its order is assumed
    if i.op == "fence.proxy.tensormap::generic.acquire.gpu":
        return Decoded("nothing", "barrier")  # a tensor map that a launch creates is read from global memory directly
    if i.op in ("setmaxnreg.inc.sync.aligned.u32", "setmaxnreg.dec.sync.aligned.u32"):
        return Decoded("nothing", "other")
    return None


@rule("mbarrier")
def mbarriers(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    what, *rest = m
    if not only(rest, "shared", "shared::cta", "b64", "expect_tx", "parity", "release", "acquire", "cta"):
        return None
    if what in ("init", "inval"):
        base, offset = o.address(i.args[0], False, i)
        return Decoded(f"mbarrier.{what}", "barrier", [], [base, *(o.read(a, "u32", i) for a in i.args[1:])], offset)
    if what == "arrive":
        base, offset = o.address(i.args[1], False, i)
        sources = [base, *(o.read(a, "u32", i) for a in i.args[2:])]
        flags = 0 if "expect_tx" in rest else ARRIVE_ONLY
        return Decoded("mbarrier.arrive", "barrier", [o.write(i.args[0], i)], sources, offset, flags=flags)
    if what == "expect_tx":
        base, offset = o.address(i.args[0], False, i)
        return Decoded("mbarrier.arrive", "barrier", [], [base, o.read(i.args[1], "u32", i)], offset, flags=ALL)
    if what in ("try_wait", "test_wait") and "parity" in rest and len(i.args) == 3:
        base, offset = o.address(i.args[1], False, i)
        return Decoded("mbarrier.wait", "barrier", [o.write(i.args[0], i)], [base, o.read(i.args[2], "u32", i)], offset)
    return None
