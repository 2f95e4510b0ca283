"""A fault in the source of a kernel is told with the line of the source that it shows in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_attn

from . import build
from .parse import parse

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler: the emulated card is made of C")
ROOT = Path(entropy_attn.__file__).parents[1]
# What stands in a file of the kernels, the fault in its place, a call that meets it, what is found, and at which line:
# that of the fault, or, of a wrong descriptor or row, the one that fetches or stores by it.
FAULTS = {
    "a load without its mask": (
        "common/tiles.py", "return tl.load(ptrs, mask=inside_rows & inside_cols, other=0.0)", "return tl.load(ptrs)",
        "target=sm_80 head_dim=40 head_dim_v=40", "bounds", None,
    ),
    "a mask read beyond its last key": (
        "common/tiles.py", "tl.load(ptrs, mask=by_key(offs_n < seqlen_k, TRANSPOSED), other=0)", "tl.load(ptrs)",
        "target=sm_90 mask=bool", "bounds", None,
    ),
    "a descriptor with a row too many": (
        "common/arguments.py", "TensorDescriptor(t, shape, strides",
        "TensorDescriptor(t, [*shape[:2], shape[2] + 1, shape[3]], strides",
        "target=sm_90", "bounds", "x.chunks[i].load([x.off_b",
    ),
    "one value for the rows to load and to store": (
        "forward/kernel.py", "first_row = tl.maximum(start_m, 0)", "first_row = start_m",
        "target=sm_90 seqlen_q=129 seqlen_k=192 schedule=specialized", "race", "tl.store(lse_ptr + off_row",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    shutil.copytree(ROOT / "entropy_attn", folder / "entropy_attn", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").symlink_to(ROOT / "tests")
    return folder


def told_of(folder: Path, file: str, sound: str, faulty: str, call: str) -> str:
    """What a call by the copied kernels says that have this fault."""
    path = folder / "entropy_attn" / "kernels" / file
    text = path.read_text()
    assert text.count(sound) == 1
    path.write_text(text.replace(sound, faulty))
    command = [sys.executable, "-m", "tests.emulation.fuzz", "--repro", call]
    path_here = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # by which another Triton is found
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, path_here))}
    try:
        told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        path.write_text(text)
    assert told.returncode == 1, told.stdout + told.stderr
    return told.stdout


def lines_with(folder: Path, text: str) -> list[str]:
    kernels = folder / "entropy_attn" / "kernels"
    files = {str(p.relative_to(kernels)): p.read_text().split("\n") for p in kernels.glob("*/*.py")}
    return [f"{name}:{k}" for name, lines in files.items() for k, line in enumerate(lines, 1) if text in line]


@needs_compiler
@pytest.mark.parametrize("name", FAULTS)
def test_the_line_of_a_fault_is_named(name, copied):
    file, sound, faulty, call, kind, shows = FAULTS[name]
    at = lines_with(copied, shows or sound)
    told = told_of(copied, file, sound, faulty, call)
    assert f"Finding: {kind}" in told
    assert any(f"{place}:" in told for place in at), f"{at} not in {told}"


@needs_compiler
def test_a_wrong_result_names_the_kernels(copied):
    """A score mask that is left out reads and stores all in its bounds: no line is wrong by itself."""
    sound, faulty = "z = tl.where(bias != 0, z, EXCLUDED)", "z = tl.where(bias != 7, z, EXCLUDED)"
    told = told_of(copied, "common/tiles.py", sound, faulty, "target=sm_80 mask=bool seqlen_k=40")
    (line,) = lines_with(copied, "def attention_forward_pointers(")
    begins = f"{line.split(':')[0]}:{int(line.split(':')[1]) - 1}"  # the line of @triton.jit
    assert "above the budget" in told and f"launched on sm_80: attention_forward_pointers ({begins})" in told


INLINE = """
.target sm_80
.visible .entry kernel(
)
.reqntid 32
{
	.reg .b32 %r<3>;
	.loc	1 298 5 // kernel.py:298:5
	.loc	2 65 20, function_name $L__info_string0, inlined_at 1 298 5 // tiles.py:65:20
	// begin inline asm
	.loc	2 65 20, function_name $L__info_string0, inlined_at 1 298 5 // tiles.py:65:20
	mov.u32 %r1, 0x0;
	.loc	2 66 20, function_name $L__info_string0, inlined_at 1 298 5 // tiles.py:66:20
	mov.u32 %r2, 0x0;
	// end inline asm
	.loc	1 299 5 // kernel.py:299:5
	ret;
}
	.file	1 "/src/entropy_attn/kernels/forward/kernel.py"
	.file	2 "/src/entropy_attn/kernels/common/tiles.py"
"""


def test_lines_of_inline_assembly_are_none_of_the_source():
    """Triton 3.9's LLVM counts on: a load whose assembly has five lines would be four lines further down."""
    told = [instruction.source for instruction in parse(INLINE).code]
    assert told == ["common/tiles.py:65:20 @[ forward/kernel.py:298:5 ]"] * 2 + ["forward/kernel.py:299:5"]
