"""For a fault in the source of a kernel, the finding names the source line in which it shows."""

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
# A file of the kernels, its correct text, the fault that replaces it, a call that reaches it, the kind of the finding,
# and text of the line that is named if it is not the line of the fault: the one that loads or stores wrongly.
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


def output_of(folder: Path, file: str, sound: str, faulty: str, call: str) -> str:
    """The output of a call with this fault in the copied kernels."""
    path = folder / "entropy_attn" / "kernels" / file
    text = path.read_text()
    assert text.count(sound) == 1
    path.write_text(text.replace(sound, faulty))
    command = [sys.executable, "-m", "tests.emulation.fuzz", "--repro", call]
    path_here = filter(
        None, os.environ.get("PYTHONPATH", "").split(os.pathsep)
    )  # may lead to another version of Triton
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, path_here))}
    try:
        output = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        path.write_text(text)
    assert output.returncode == 1, output.stdout + output.stderr
    return output.stdout


def lines_with(folder: Path, text: str) -> list[str]:
    kernels = folder / "entropy_attn" / "kernels"
    files = {str(p.relative_to(kernels)): p.read_text().split("\n") for p in kernels.glob("*/*.py")}
    return [f"{name}:{k}" for name, lines in files.items() for k, line in enumerate(lines, 1) if text in line]


@needs_compiler
@pytest.mark.parametrize("name", FAULTS)
def test_the_finding_names_the_line_of_a_fault(name, copied):
    file, sound, faulty, call, kind, shows = FAULTS[name]
    at = lines_with(copied, shows or sound)
    output = output_of(copied, file, sound, faulty, call)
    assert f"Finding: {kind}" in output
    assert any(f"{line}:" in output for line in at), f"{at} not in {output}"


@needs_compiler
def test_a_wrong_result_names_the_kernels(copied):
    """Without a score mask, every load and store is within its bounds: no single line is at fault."""
    sound, faulty = "z = tl.where(bias != 0, z, EXCLUDED)", "z = tl.where(bias != 7, z, EXCLUDED)"
    output = output_of(copied, "common/tiles.py", sound, faulty, "target=sm_80 mask=bool seqlen_k=40")
    (line,) = lines_with(copied, "def attention_forward_pointers(")
    begins = f"{line.split(':')[0]}:{int(line.split(':')[1]) - 1}"  # the line of @triton.jit
    assert "above the budget" in output and f"launched on sm_80: attention_forward_pointers ({begins})" in output


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


def test_lines_of_inline_assembly_are_no_source_lines():
    """Triton 3.9's LLVM counts them: a load with five lines of assembly would be four lines further down."""
    sources = [instruction.source for instruction in parse(INLINE).code]
    assert sources == ["common/tiles.py:65:20 @[ forward/kernel.py:298:5 ]"] * 2 + ["forward/kernel.py:299:5"]
