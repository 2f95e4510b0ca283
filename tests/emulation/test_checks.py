"""Each check finds its fault in a few lines of PTX, and accepts the same lines without the fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import build
from .program import Finding
from .snippet import run

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler: the emulated card is made of C")

WORDS = {
    "OWN": "shl.b32 %r1, %r0, 2; add.s32 %r2, %r255, %r1;",  # %r2: the thread's word of shared memory
    "NEXT": "xor.b32 %r3, %r0, 1; shl.b32 %r3, %r3, 2; add.s32 %r3, %r255, %r3;",  # %r3: its neighbor's
    "FAR": "xor.b32 %r3, %r0, 32; shl.b32 %r3, %r3, 2; add.s32 %r3, %r255, %r3;",  # %r3: one of the other warp's
    "FIRST": "setp.lt.u32 %p4, %r0, 32; @%p4",  # for the first warp only
    "SECOND": "setp.ge.u32 %p5, %r0, 32; @%p5",
    "SOURCE": "mul.wide.u32 %rd2, %r0, 16; add.s64 %rd3, %rd0, %rd2;",  # %rd3: the thread's 16 bytes to read
    "LANE_16": "shl.b32 %r4, %r0, 4; add.s32 %r4, %r255, %r4;",  # %r4: its 16 bytes of shared memory
}
GIVEN = np.arange(1024, dtype=np.uint32)


def planted() -> dict[str, tuple[str, str, str, str]]:
    """By name: kind, message, the faulty snippet, the sound one."""
    found: dict[str, tuple[str, str, str, str]] = {}
    for block in Path(__file__).with_name("planted.txt").read_text().split("\n= ")[1:]:
        head, *lines = block.strip("\n").split("\n")
        name, kind, says = head.split(" | ")
        found[name] = kind, says, snippet(lines, " -"), snippet(lines, " +")
    return found


def snippet(lines: list[str], marks: str) -> str:
    chosen = []
    for line in (line[2:] for line in lines if line[0] in marks):
        for word, meaning in WORDS.items():
            if line == word or line.startswith(word + " "):
                line = line.replace(word, meaning, 1)
        chosen.append(line if line.endswith((":", ";")) else line + ";")
    return "\n".join(chosen)


CASES = planted()


@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_found(name, monkeypatch):
    monkeypatch.setattr("tests.emulation.program.LIMIT", 10_000)
    kind, says, faulty, sound = CASES[name]
    setting = {"threads": 64, "grid": (2, 1, 1) if "program" in name else (1, 1, 1), "written": False}
    run(sound, GIVEN, 256, **setting)
    with pytest.raises(Finding, match=says) as found:
        run(faulty, GIVEN, 256, **setting)
    assert found.value.kind == kind
    assert kind == "deadlock" or "PTX line" in str(found.value)


def test_a_finding_names_kernel_line_thread_and_the_conflicting_access():
    with pytest.raises(Finding) as found:
        run(CASES["race of warps"][2], GIVEN, 256, threads=64)
    for part in (
        "kernel snippet (sm_90a), program 0", "ld.shared.b32", "thread 32 (warp 1, lane 0)",
        "conflicts with thread 0", "st.shared.b32",
    ):  # fmt: skip
        assert part in str(found.value)


EXCHANGE = f"""{WORDS["OWN"]} {WORDS["FAR"]}
st.shared.b32 [%r2], %r0;
bar.sync 0;
ld.shared.b32 %r5, [%r3];
mul.wide.u32 %rd2, %r0, 4;
add.s64 %rd3, %rd1, %rd2;
st.global.b32 [%rd3], %r5;"""


def test_sectors_and_wavefronts_are_counted():
    bits, counts = run(EXCHANGE, GIVEN, 256, threads=64)
    assert np.array_equal(bits.view(np.uint32), np.arange(64) ^ 32)
    assert (counts.global_requests, counts.global_sectors, counts.global_ideal) == (2, 8, 8)
    assert (counts.shared_requests, counts.shared_wavefronts, counts.shared_ideal) == (4, 4, 4)


def test_bank_conflicts_are_counted():
    text = "shl.b32 %r1, %r0, 7; add.s32 %r2, %r255, %r1; st.shared.b32 [%r2], %r0;"
    _, counts = run(text, GIVEN, 256, threads=32)
    assert (counts.shared_wavefronts, counts.shared_ideal) == (32, 1)


def test_bytes_that_lanes_of_one_store_write_differently_are_counted():
    _, counts = run("st.shared.b32 [%r255], %r0;", GIVEN, 256, threads=32)
    assert counts.contested == 31  # the lowest byte of each word
