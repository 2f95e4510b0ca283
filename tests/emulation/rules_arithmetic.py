"""Rules for arithmetic, logic, comparison, conversion and moves."""

from __future__ import annotations

from .decode import BF16, COPY, FTZ, PAIR, SELECT, Decoded, only, rule, simple
from .operands import Operands, vector
from .parse import SIZES, Instruction

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64", "b16", "b32", "b64")
HALVES = {"f16": 0, "bf16": BF16, "f16x2": 2048, "bf16x2": 2048 | BF16}
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu", "nan", "num")


def _bits(t: str) -> int:
    return 8 * SIZES[t]


def _signed(t: str) -> str:
    return ("s" if t[0] == "s" else "u") + str(_bits(t))


def _width(t: str) -> str:
    """The type of the registers of a packed pair."""
    return {"f32x2": "b64", "f16x2": "b32", "bf16x2": "b32"}.get(t, t)


@rule("add", "sub")
def sums(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root, t = i.op.split(".")[0], m[-1]
    if t in INTEGERS and len(m) == 1:
        return simple(o, i, f"{root}.i{_bits(t)}", "integer", t)
    return _floats(o, i, root, m)


def _floats(o: Operands, i: Instruction, root: str, m: list[str]) -> Decoded | None:
    *rest, t = m
    if not only(rest, "rn", "ftz"):
        return None
    flags = FTZ if "ftz" in rest else 0
    if t in ("f32", "f32x2"):
        return simple(o, i, f"{root}.{t}", "float", _width(t), flags | (PAIR if t == "f32x2" else 0))
    if t in HALVES and not flags:
        return simple(o, i, f"{root}.half", "float", _width(t), HALVES[t])
    return None


@rule("mul")
def products(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    t = m[-1]
    if t in INTEGERS and m[0] == "lo":
        return simple(o, i, f"mul.i{_bits(t)}", "integer", t)
    if t in ("u32", "s32") and m[0] == "hi":
        return simple(o, i, f"mulhi.{t}", "integer", t)
    if t in ("u32", "s32", "u16") and m[0] == "wide":
        return simple(o, i, f"wide.{t}", "integer", t)
    return _floats(o, i, "mul", m)


@rule("mad")
def multiply_add(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    t = m[-1]
    if t in INTEGERS and m[0] == "lo":
        return simple(o, i, f"mad.i{_bits(t)}", "integer", t)
    if t in ("u32", "s32") and m[0] == "wide":
        return simple(o, i, f"wide.{t}", "integer", t, last="u64")
    return None


@rule("fma")
def fused(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    if m[:2] == ["rn", "f32"] and m[2:] in (["f16"], ["bf16"]):
        return simple(o, i, "fma.mixed", "float", "f32", BF16 if m[2] == "bf16" else 0)
    return _floats(o, i, "fma", m) if m[0] == "rn" else None


@rule("min", "max")
def extremes(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root, t, num = i.op.split(".")[0], m[-1], len(i.args) - 1
    if t[0] in "us" and len(m) == 1 and num == 2:
        return simple(o, i, f"{root}.{t}", "integer", t)
    if t == "f32" and only(m[:-1], "NaN", "ftz") and num in (2, 3):  # three operands on sm_100 and later
        name = f"{root}.NaN.f32" if "NaN" in m else f"{root}.f32"
        return simple(o, i, name, "float", t, FTZ if "ftz" in m else 0)
    return None


@rule("neg", "abs", "not")
def unary(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root, t = i.op.split(".")[0], m[-1]
    if t == "pred":
        return simple(o, i, "not.pred", "integer", t)
    if t == "f32" and only(m[:-1], "ftz"):
        return simple(o, i, f"{root}.f32", "float", t, (FTZ if "ftz" in m else 0) | (COPY if root == "neg" else 0))
    if t in HALVES and root != "not" and len(m) == 1:
        return simple(o, i, f"{root}.half", "float", _width(t), HALVES[t])
    if t in INTEGERS and len(m) == 1:
        suffix = {"neg": "i", "abs": "s", "not": "b"}[root]
        return simple(o, i, f"{root}.{suffix}{_bits(t)}", "integer", t)
    return None


@rule("div", "rem")
def quotients(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root, t = i.op.split(".")[0], m[-1]
    if t[0] in "us" and len(m) == 1:
        return simple(o, i, f"{root}.{t}", "integer", t)
    if root == "div" and t == "f32" and m[0] in ("rn", "full", "approx") and only(m[1:-1], "ftz"):
        return simple(o, i, "div.f32", "special function", t, FTZ if "ftz" in m else 0)
    return None


@rule("ex2", "lg2", "rcp", "sqrt", "rsqrt", "tanh")
def special_functions(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    if m[-1] != "f32" or m[0] not in ("approx", "rn") or not only(m[1:-1], "ftz"):
        return None
    return simple(o, i, f"{i.op.split('.')[0]}.f32", "special function", "f32", FTZ if "ftz" in m else 0)


@rule("and", "or", "xor")
def logic(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root, (t,) = i.op.split(".")[0], m
    name = f"{root}.pred" if t == "pred" else f"{root}.b{_bits(t)}"
    sign = root == "xor" and t == "b32" and i.args[2] in ("-2147483648", "0x80000000")
    return simple(o, i, name, "integer", t, COPY if sign else 0)


@rule("shl", "shr")
def shifts(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root, (t,) = i.op.split(".")[0], m
    name = f"shl.b{_bits(t)}" if root == "shl" else f"shr.{_signed(t)}"
    return Decoded(name, "integer", [o.write(i.args[0], i)], [o.read(i.args[1], t, i), o.read(i.args[2], "u32", i)])


@rule("prmt", "bfe", "bfi", "lop3", "clz", "popc")
def bits(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    root, (t,) = i.op.split(".")[0], m
    if root == "lop3":
        made = simple(o, i, "lop3.b32", "integer", t)
        made.src.pop()
        made.imm = int(i.args[4], 0)
        return made
    return simple(o, i, f"{root}.{t}", "integer", t) if SIZES[t] == 4 else None


@rule("setp")
def compare(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    comparison, *rest, t = m
    comparison = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(comparison, comparison)
    if not only(rest, "ftz") or comparison not in COMPARISONS + UNORDERED:
        return None
    flags = FTZ if rest else 0
    if t in ("f16x2", "bf16x2") and comparison not in ("nan", "num"):
        to, sources = i.args[0].split("|"), [o.read(a, "b32", i) for a in i.args[1:]]
        return (
            Decoded(f"{comparison}.{t[:-2]}", "float", [o.write(p, i) for p in to], sources) if len(to) == 2 else None
        )
    if t in ("f32", "f16", "bf16"):
        return simple(o, i, f"{comparison}.{t}", "float", t, flags)
    return simple(o, i, f"{comparison}.{_signed(t)}", "integer", t)


@rule("selp")
def select(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    (t,) = m
    return simple(o, i, "selp.b64" if SIZES[t] == 8 else "selp.b32", "move", t, SELECT, last="pred")


@rule("mov")
def move(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    (t,) = m
    to, source = i.args
    if to.startswith("{"):
        parts = vector(to)
        return Decoded("mov.split", "move", [o.write(p, i) for p in parts], [o.read(source, t, i)],
                       imm=_bits(t) // len(parts), imm2=_bits(t), flags=PAIR if len(parts) == 2 else 0)  # fmt: skip
    if source.startswith("{"):
        parts = vector(source)
        part = f"b{_bits(t) // len(parts)}"
        return Decoded("mov.join", "move", [o.write(to, i)], [o.read(p, part, i) for p in parts],
                       imm=_bits(part), imm2=_bits(t), flags=PAIR if len(parts) == 2 else 0)  # fmt: skip
    if source in o.parameters:
        return Decoded("param.place", "move", [o.write(to, i, t)], imm=o.parameter(source, i), imm2=_bits(t))
    if source == "%clock" or source == "%globaltimer":
        return None
    return simple(o, i, "mov.pred" if t == "pred" else f"mov.b{_bits(t)}", "move", t, COPY)


@rule("cvta")
def to_generic(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    """Global and generic addresses are the same here; that of a parameter is its offset in the launch's copy."""
    if not only(m, "to", "global", "param", "u64"):
        return None
    if i.args[1] in o.parameters:
        return Decoded("param.address", "move", [o.write(i.args[0], i)], imm=o.parameter(i.args[1], i))
    return simple(o, i, "param.address" if m == ["param", "u64"] else "mov.b64", "move", "u64")


ROUNDINGS = {"rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}


@rule("cvt")
def convert(o: Operands, i: Instruction, m: list[str]) -> Decoded | None:
    *rest, to, source = m
    if len(i.args) != (3 if to.endswith("x2") else 2):
        return None
    if SIZES.get(source) == 4 and o.kernel.registers.get(i.args[1]) == "b64" and to in ("s64", "u64"):
        return simple(o, i, f"cvt.low.{source}.64", "conversion", "b64")
    rounding = [ROUNDINGS[r] for r in rest if r in ROUNDINGS]
    if not only(rest, "rn", *ROUNDINGS):
        return None
    if source == "f32" and to == "f32" and rounding:
        name = ["rint.f32", "trunc.f32", "floor.f32", "ceil.f32"][rounding[0]]
        return simple(o, i, name, "conversion", "f32")
    if source == "f32" and to in ("f16", "bf16", "f16x2", "bf16x2") and rest == ["rn"]:
        return simple(o, i, f"cvt.f32.{to}", "conversion", "f32")
    if source == "f32" and to in ("s32", "u32") and rounding:
        return simple(o, i, f"cvt.f32.{to}", "conversion", "f32", imm=rounding[0])
    if to == "f32" and source in ("f16", "bf16") and not rest:
        return simple(o, i, f"cvt.{source}.f32", "conversion", source)
    if to == "f32" and source[0] in "us" and rest == ["rn"]:
        return simple(o, i, f"cvt.{source}.f32", "conversion", source)
    if rest or to[0] not in "usb" or source[0] not in "usb":
        return None
    wide, narrow = _bits(to), _bits(source)
    if narrow >= wide:  # truncate, or only change the type
        if narrow == wide:
            return simple(o, i, f"mov.b{wide}", "conversion", source) if wide >= 16 else None
        return simple(o, i, f"cvt.b{narrow if narrow == 64 else 32}.{wide}", "conversion", source)
    if wide == 16:
        name = "cvt.s8.16" if source[0] == "s" else "cvt.u8.32"
    else:
        name = f"cvt.{_signed(source)}.{wide}"
    return simple(o, i, name, "conversion", source)
