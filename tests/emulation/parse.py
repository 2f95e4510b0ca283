"""Parses PTX to a list of instructions, with resolved labels, declared registers, and the source line of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SIZES = {"pred": 4, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
SIZES |= {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}


class UnknownPtx(NotImplementedError):
    """Something in a kernel's PTX that the emulated card does not know; the message names it."""


@dataclass(frozen=True)
class Parameter:
    name: str
    size: int
    align: int
    offset: int


@dataclass
class Instruction:
    op: str  # with its modifiers
    args: list[str]
    guard: str | None
    negated: bool
    line: int  # of the PTX text, from 1
    source: str  # file:line:column, and where it was inlined
    text: str
    target: int = -1  # of a branch: the index of an instruction

    def __str__(self) -> str:
        return f"PTX line {self.line}: {self.text}" + (f"  [{self.source}]" if self.source else "")


@dataclass
class Kernel:
    name: str
    target: str  # "sm_90a"
    parameters: list[Parameter]
    threads: int
    max_registers: int | None
    code: list[Instruction] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name to type
    tables: dict[str, list[int]] = field(default_factory=dict)  # targets of indexed branches
    symbols: set[str] = field(default_factory=set)  # shared arrays


def parse(text: str) -> Kernel:
    """The one kernel of a PTX module."""
    entry = re.search(r"\.visible \.entry (\w+)\(", text)
    threads = re.search(r"\.reqntid (\d+)", text)
    target = re.search(r"^\.target (\w+)", text, re.M)
    if not (entry and threads and target):
        raise UnknownPtx("a module without .entry, .reqntid and .target")
    head_end = text.index("\n)", entry.end())
    parameters = _parameters(text[entry.end() : head_end])
    max_registers = re.search(r"\.maxnreg (\d+)", text)
    kernel = Kernel(
        entry.group(1), target.group(1), parameters, int(threads.group(1)),
        int(max_registers.group(1)) if max_registers else None,
        symbols=set(re.findall(r"\.extern \.shared [^;]*?(\w+)\[\]", text)),
    )  # fmt: skip
    body_start = text.index("\n{", head_end)
    _Body(kernel, text[body_start + 1 :], text.count("\n", 0, body_start + 1)).read()
    return kernel


def _parameters(head: str) -> list[Parameter]:
    found, offset = [], 0
    for line in head.split("\n"):
        m = re.match(r"\s*\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr[^,]*?\s)?(\w+)(?:\[(\d+)\])?,?\s*$", line)
        if not m:
            if line.strip():
                raise UnknownPtx(f"parameter {line.strip()!r}")
            continue
        align, kind, name, length = m.groups()
        size = int(length) * SIZES[kind] if length else SIZES[kind]
        alignment = int(align) if align else SIZES[kind]
        offset = -(-offset // alignment) * alignment
        found.append(Parameter(name, size, alignment, offset))
        offset += size
    return found


def split_operands(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "{[") - (char in "}]")
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return [*parts, current.strip()] if current.strip() else parts


class _Body:
    """Reads the body of a kernel. Names declared in a nested scope are renamed, because scopes reuse names."""

    def __init__(self, kernel: Kernel, text: str, first_line: int):
        self.kernel, self.text, self.first_line = kernel, text, first_line
        self.scopes: list[dict[str, str]] = []  # new names of what each open scope declares
        self.labels: dict[str, int] = {}
        self.label_scopes: list[list[str]] = []  # prefixes of the scopes of each instruction, innermost last
        self.prefixes: list[str] = []
        self.num_scopes = 0

    def read(self) -> None:
        source, statement, started, counted = "", "", 0, False
        chains: dict[str, str] = {}  # by position: where that was inlined
        # The comments name files without folders, and each pass of the kernels has a kernel.py.
        files = re.findall(r'^\s*\.file\s+\d+ "[^"]*kernels/(\w+)/(\w+\.py)"', self.text, re.M)
        folders = {name: f"{folder}/{name}" for folder, name in files}
        for number, raw in enumerate(self.text.split("\n"), self.first_line + 1):
            code, _, comment = raw.partition("//")
            code = code.strip()
            if "inline asm" in comment:
                counted = "begin inline asm" in comment
            if code.startswith(".loc") and counted:
                continue  # Triton 3.9's LLVM counts lines of inline assembly as source lines
            if code.startswith(".loc"):
                source = re.sub(r"\w+\.py", lambda name: folders.get(name[0], name[0]), comment.strip())
                into = re.search(r"inlined_at (\d+ \d+ \d+)", code)
                if into:  # Triton 3.9 has the chain in the directives, others in the comment
                    source += f" @[ {chains.get(into.group(1), into.group(1))} ]"
                chains[" ".join(code.split()[1:4]).rstrip(",")] = source
                continue
            if not self.prefixes and self.num_scopes:
                break  # after the closing brace of the kernel there are debugging sections
            while code:
                if not statement:
                    started = number
                    if code[0] in "{}":
                        self._brace(code[0])
                        code = code[1:].strip()
                        continue
                    label = re.match(r"([$\w]+):(?!:)\s*", code)
                    if label:
                        self.labels[self.prefixes[-1] + label.group(1)] = len(self.kernel.code)
                        code = code[label.end() :]
                        continue
                part, end, code = code.partition(";")
                statement += " " + part.strip()
                code = code.strip()
                if end:
                    self._statement(statement.strip(), started, source)
                    statement = ""
        self._resolve()

    def _brace(self, brace: str) -> None:
        if brace == "{":
            self.prefixes.append(f"{self.num_scopes}:" if self.num_scopes else "")
            self.scopes.append({})
            self.num_scopes += 1
        else:
            self.prefixes.pop()
            self.scopes.pop()

    def _statement(self, text: str, line: int, source: str) -> None:
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith(".branchtargets"):
            self._table(text)
        elif text.startswith("."):
            if not text.startswith((".pragma", ".section")):
                raise UnknownPtx(f"PTX line {line}: {text}")
        else:
            m = re.match(r"(?:@(!?)([%$\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, re.S)
            if not m:
                raise UnknownPtx(f"PTX line {line}: {text}")
            negated, guard, op, rest = m.groups()
            args = [self._renamed(a) for a in split_operands(rest)]
            guard = self._renamed(guard) if guard else None
            self.kernel.code.append(Instruction(op, args, guard, negated == "!", line, source, text))
            self.label_scopes.append(list(self.prefixes))

    def _declare(self, text: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S).groups()
        for name in split_operands(names):
            many = re.match(r"([%$\w]+)<(\d+)>", name)
            for each in [f"{many.group(1)}{k}" for k in range(int(many.group(2)))] if many else [name]:
                renamed = self.prefixes[-1] + each
                if self.prefixes[-1]:
                    self.scopes[-1][each] = renamed
                self.kernel.registers[renamed] = kind

    def _table(self, text: str) -> None:
        name = next(label for label, at in reversed(self.labels.items()) if at == len(self.kernel.code))
        self.kernel.tables[name] = split_operands(text.removeprefix(".branchtargets"))

    def _renamed(self, operand: str) -> str:
        if not any(self.scopes):
            return operand

        def new_name(m: re.Match) -> str:
            return next((s[m.group()] for s in reversed(self.scopes) if m.group() in s), m.group())

        return re.sub(r"[%$]?[A-Za-z_][\w$]*", new_name, operand)

    def _resolve(self) -> None:
        for instruction, prefixes in zip(self.kernel.code, self.label_scopes, strict=True):
            if instruction.op.split(".")[0] == "bra":
                instruction.target = self._label(instruction.args[0], prefixes, instruction)
        for targets in self.kernel.tables.values():
            targets[:] = [self.labels[t] for t in targets]

    def _label(self, name: str, prefixes: list[str], instruction: Instruction) -> int:
        for prefix in reversed(prefixes):
            if prefix + name in self.labels:
                return self.labels[prefix + name]
        raise UnknownPtx(f"{instruction}: no label {name}")
