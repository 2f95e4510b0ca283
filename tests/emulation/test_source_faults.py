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

ROOT = Path(entropy_attn.__file__).parents[1]
# What stands in a file of the kernels, the fault in its place, a call that meets it, what is found, and at which line:
# that of the fault, or, of a wrong descriptor or row, the one that fetches or stores by it.
FAULTS = {
    "a load without its mask": (
        "tiles.py", "return tl.load(ptrs, mask=inside_rows & inside_cols, other=0.0)", "return tl.load(ptrs)",
        "target=sm_80 head_dim=40 head_dim_v=40", "bounds", None,
    ),
    "a mask read beyond its last key": (
        "tiles.py", "tl.load(ptrs, mask=by_key(offs_n < seqlen_k, TRANSPOSED), other=0)", "tl.load(ptrs)",
        "target=sm_90 mask=bool", "bounds", None,
    ),
    "a descriptor with a row too many": (
        "arguments.py", "list(t.shape), strides", "[*t.shape[:2], t.shape[2] + 1, t.shape[3]], strides",
        "target=sm_90", "bounds", "return src.load([off_b, off_h, start, OFF_D])",
    ),
    "one value for the rows to load and to store": (
        "forward.py", "first_row = tl.maximum(start_m, 0)", "first_row = start_m",
        "target=sm_90 seqlen_q=129 seqlen_k=192 schedule=specialized", "race", "tl.store(lse_ptr + off_row",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    shutil.copytree(ROOT / "entropy_attn", folder / "entropy_attn", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").symlink_to(ROOT / "tests")
    return folder


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler: the emulated card is made of C")
@pytest.mark.parametrize("name", FAULTS)
def test_the_line_of_a_fault_is_named(name, copied):
    file, sound, faulty, call, kind, shows = FAULTS[name]
    path = copied / "entropy_attn" / "kernels" / file
    text = path.read_text()
    assert text.count(sound) == 1
    path.write_text(text.replace(sound, faulty))
    command = [sys.executable, "-m", "tests.emulation.fuzz", "--repro", call]
    path_here = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # by which another Triton is found
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, path_here))}
    try:
        told = subprocess.run(command, cwd=copied, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        path.write_text(text)
    at = [f"{p.name}:{k}:" for p in path.parent.glob("*.py") for k, line in enumerate(p.read_text().split("\n"), 1)
          if (shows or sound) in line]  # fmt: skip
    assert told.returncode == 1 and f"Finding: {kind}" in told.stdout, told.stdout + told.stderr
    assert any(place in told.stdout for place in at), f"{at} not in {told.stdout}"


INLINE = """
.target sm_80
.visible .entry kernel(
)
.reqntid 32
{
	.reg .b32 %r<3>;
	.loc	1 298 5 // forward.py:298:5
	.loc	2 65 20, function_name $L__info_string0, inlined_at 1 298 5 // tiles.py:65:20
	// begin inline asm
	.loc	2 65 20, function_name $L__info_string0, inlined_at 1 298 5 // tiles.py:65:20
	mov.u32 %r1, 0x0;
	.loc	2 66 20, function_name $L__info_string0, inlined_at 1 298 5 // tiles.py:66:20
	mov.u32 %r2, 0x0;
	// end inline asm
	.loc	1 299 5 // forward.py:299:5
	ret;
}
"""


def test_lines_of_inline_assembly_are_none_of_the_source():
    """Triton 3.9's LLVM counts on: a load whose assembly has five lines would be four lines further down."""
    told = [instruction.source for instruction in parse(INLINE).code]
    assert told == ["tiles.py:65:20 @[ forward.py:298:5 ]"] * 2 + ["forward.py:299:5"]
