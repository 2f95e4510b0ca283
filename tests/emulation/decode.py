"""From parsed PTX to instructions of the machine. An instruction without a rule is an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .operands import Operands
from .parse import Instruction, Kernel, UnknownPtx

KINDS = ["integer", "float", "special function", "conversion", "move", "global load", "global store", "shared load"]
KINDS += ["shared store", "copy", "matrix", "shuffle", "barrier", "branch", "other"]
FTZ, TRANS, BF16, ARRIVE_ONLY, A_IN_REGISTERS, ALL, SELECT, SHUFFLE = 1, 8, 16, 32, 64, 2048, 4096, 8192
WIDENED, SIGNED, COPY, PAIR = 16384, 32768, 65536, 131072


@dataclass
class Decoded:
    """One instruction for the machine: the name of a handler, units of its operands, and its settings."""

    handler: str
    kind: str
    dst: list[int] = field(default_factory=list)
    src: list[int] = field(default_factory=list)
    imm: int = 0
    imm2: int = 0
    flags: int = 0
    more: list[int] = field(default_factory=list)  # after the registers: jump targets, registers of a product


# How many operands an instruction may have: a rule would ignore further ones.
OPERANDS = {"add": 3, "sub": 3, "mul": 3, "mad": 4, "fma": 4, "neg": 2, "abs": 2, "not": 2, "div": 3, "rem": 3}
OPERANDS |= dict.fromkeys(("ex2", "lg2", "rcp", "sqrt", "rsqrt", "tanh", "mov", "cvta", "clz", "popc"), 2)
OPERANDS |= dict.fromkeys(("and", "or", "xor", "shl", "shr", "setp", "vote", "redux"), 3)
OPERANDS |= {"selp": 4, "prmt": 4, "bfe": 4, "bfi": 5, "lop3": 5, "ld": 2, "st": 2, "ldmatrix": 2, "stmatrix": 2}
OPERANDS |= {"mma": 4, "bra": 1, "brx": 2, "ret": 0, "exit": 0, "shfl": 5, "elect": 2}

Rule = Callable[[Operands, Instruction, list[str]], Decoded | None]
RULES: dict[str, Rule] = {}


def rule(*roots: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(roots, function))
        return function

    return register


def decode(kernel: Kernel) -> tuple[list[Decoded], Operands]:
    from . import rules_arithmetic, rules_asynchronous, rules_memory  # noqa: F401  they register themselves

    operands = Operands(kernel)
    decoded = []
    for instruction in kernel.code:
        root, *modifiers = instruction.op.split(".")
        fits = OPERANDS.get(root, len(instruction.args)) == len(instruction.args)
        made = RULES[root](operands, instruction, modifiers) if root in RULES and fits else None
        if made is None:
            name = f"{instruction.op!r} with {len(instruction.args)} operands"
            raise UnknownPtx(f"the emulated card does not know {name}: {instruction}")
        decoded.append(made)
    return decoded, operands


def simple(
    o: Operands, i: Instruction, handler: str, kind: str, t: str, flags: int = 0, last: str | None = None, **more: int
) -> Decoded:
    """One destination, and sources of one type; except for comparisons and conversions, the destination has it, too."""
    result = None if kind == "conversion" or i.op.startswith("setp") or ".wide." in i.op else t
    kinds = [t] * (len(i.args) - 2) + [last or t]  # `last`: the type of the last source, if it differs
    sources = [o.read(a, k, i) for a, k in zip(i.args[1:], kinds, strict=True)]
    return Decoded(handler, kind, [o.write(i.args[0], i, result)], sources, flags=flags, **more)


def only(modifiers: list[str], *allowed: str) -> bool:
    return set(modifiers) <= set(allowed)
