"""Each check finds the fault that it is for, in a few lines of PTX, and says nothing of the same lines without it."""

from __future__ import annotations

import numpy as np
import pytest

from . import build
from .program import Finding
from .snippet import run

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler: the emulated card is made of C")

OWN = "shl.b32 %r1, %r0, 2; add.s32 %r2, %r255, %r1;"  # %r2: this thread's own word of shared memory
NEXT = "xor.b32 %r3, %r0, 1; shl.b32 %r3, %r3, 2; add.s32 %r3, %r255, %r3;"  # %r3: its neighbour's
FAR = "xor.b32 %r3, %r0, 32; shl.b32 %r3, %r3, 2; add.s32 %r3, %r255, %r3;"  # %r3: one of another warp
FIRST, SECOND = "setp.lt.u32 %p4, %r0, 32; @%p4", "setp.ge.u32 %p5, %r0, 32; @%p5"  # by one of two warps alone
SOURCE = "mul.wide.u32 %rd2, %r0, 16; add.s64 %rd3, %rd0, %rd2;"
LANE_16 = "shl.b32 %r4, %r0, 4; add.s32 %r4, %r255, %r4;"
BARRIER = "mbarrier.init.shared::cta.b64 [%r255+2048], 1;"



# name: (what is wrong, kind of the finding, what its message holds, the same without the fault)
CASES = {
    "global bounds": ("ld.global.b32 %r1, [%rd0+4096]", "bounds", "outside of every tensor", "ld.global.b32 %r1, [%rd0+4]"),
    "global alignment": ("ld.global.v2.b32 {%r1,%r2}, [%rd0+4]", "misaligned", "no multiple of 8", "ld.global.v2.b32 {%r1,%r2}, [%rd0+8]"),
    "global, never written": ("ld.global.b32 %r1, [%rd1]", "uninitialised", "no kernel has written", "st.global.b32 [%rd1], 1; ld.global.b32 %r1, [%rd1]"),
    "global, other program": ("mov.u32 %r1, %ctaid.x; st.global.b32 [%rd1], %r1", "race", "program 0 of the same launch", "mov.u32 %r1, %ctaid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2; st.global.b32 [%rd1], %r1"),
    "shared bounds": (f"{OWN} ld.shared.b32 %r5, [%r2+8192]", "bounds", "outside of the CTA's 4096", f"{OWN} st.shared.b32 [%r2], 1"),
    "shared alignment": (f"{OWN} st.shared.v2.b32 [%r255+4], {{%r1,%r1}}", "misaligned", "no multiple of 8", f"{OWN} st.shared.b32 [%r2], 1"),
    "shared, never written": (f"{OWN} ld.shared.b32 %r5, [%r2]", "uninitialised", "never written", f"{OWN} st.shared.b32 [%r2], 1; ld.shared.b32 %r5, [%r2]"),
    "race in a warp": (f"{OWN} {NEXT} st.shared.b32 [%r2], %r0; ld.shared.b32 %r5, [%r3]", "race", "another wrote", f"{OWN} {NEXT} st.shared.b32 [%r2], %r0; bar.warp.sync -1; ld.shared.b32 %r5, [%r3]"),
    "race of warps": (f"{OWN} {FAR} st.shared.b32 [%r2], %r0; bar.warp.sync -1; {SECOND} ld.shared.b32 %r5, [%r3]", "race", "another wrote", f"{OWN} {FAR} st.shared.b32 [%r2], %r0; bar.sync 0; {SECOND} ld.shared.b32 %r5, [%r3]"),
    "overwritten under a reader": (f"{OWN} {FAR} st.shared.b32 [%r2], 1; bar.sync 0; {SECOND} ld.shared.b32 %r5, [%r3]; {FIRST} st.shared.b32 [%r2], %r0", "race", "another read", f"{OWN} {FAR} st.shared.b32 [%r2], 1; bar.sync 0; {SECOND} ld.shared.b32 %r5, [%r3]; bar.sync 0; {FIRST} st.shared.b32 [%r2], %r0"),
    "half a barrier": (f"{OWN} {FAR} st.shared.b32 [%r2], %r0; setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 32; @!%p1 bar.sync 2, 32; {SECOND} ld.shared.b32 %r5, [%r3]", "race", "another wrote", f"{OWN} {FAR} st.shared.b32 [%r2], %r0; setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64; @!%p1 bar.sync 1, 64; {SECOND} ld.shared.b32 %r5, [%r3]"),
    "a copy not waited for": (f"{SOURCE} {LANE_16} cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.commit_group; ld.shared.b32 %r5, [%r4]", "flight", "on its way", f"{SOURCE} {LANE_16} cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %r5, [%r4]"),
    "a copy not committed": (f"{SOURCE} {LANE_16} cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.wait_group 0; ld.shared.b32 %r5, [%r4]", "flight", "on its way", f"{SOURCE} {LANE_16} cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.wait_all; ld.shared.b32 %r5, [%r4]"),
    "another's copy": (f"{SOURCE} {LANE_16} xor.b32 %r5, %r4, 16; cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %r6, [%r5]", "race", "another wrote", f"{SOURCE} {LANE_16} xor.b32 %r5, %r4, 16; cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r6, [%r5]"),
    "divergent barrier": ("setp.lt.u32 %p1, %r0, 16; @%p1 bar.sync 0", "divergence", "0000ffff", "bar.sync 0"),
    "wrong count": ("bar.sync 0, 128", "barrier", "128 threads in a CTA of 64", "bar.sync 0, 64"),
    "deadlock": ("setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64", "deadlock", "warp 0 at barrier 0x1", "bar.sync 1, 64"),
    "no mbarrier": ("mbarrier.arrive.shared::cta.b64 _, [%r255+2048]", "barrier", "no mbarrier", f"setp.eq.b32 %p1, %r0, 0; @%p1 {BARRIER} @%p1 mbarrier.arrive.shared::cta.b64 _, [%r255+2048]"),
    "phase never ends": (f"setp.eq.b32 %p1, %r0, 0; @%p1 {BARRIER} bar.sync 0; again: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r255+2048], 0; @!%p2 bra again", "deadlock", "mbarrier 0xc00", f"setp.eq.b32 %p1, %r0, 0; @%p1 {BARRIER} bar.sync 0; @%p1 mbarrier.arrive.shared::cta.b64 _, [%r255+2048]; again: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r255+2048], 0; @!%p2 bra again"),
    "used before it is known": (f"setp.eq.b32 %p1, %r0, 0; @%p1 {BARRIER} setp.eq.b32 %p3, %r0, 32; @%p3 mbarrier.arrive.shared::cta.b64 _, [%r255+2048]", "race", "another wrote", f"setp.eq.b32 %p1, %r0, 0; @%p1 {BARRIER} bar.sync 0; setp.eq.b32 %p3, %r0, 32; @%p3 mbarrier.arrive.shared::cta.b64 _, [%r255+2048]"),
    "more arrivals": (f"setp.eq.b32 %p1, %r0, 0; @%p1 {BARRIER} @%p1 mbarrier.arrive.shared::cta.b64 _, [%r255+2048], 2", "barrier", "more arrivals", f"setp.eq.b32 %p1, %r0, 0; @%p1 {BARRIER} @%p1 mbarrier.arrive.shared::cta.b64 _, [%r255+2048], 1"),
    "register, never written": ("st.global.b32 [%rd1], %r77", "register", "never written", "mov.b32 %r77, 1; st.global.b32 [%rd1], %r77"),
    "predicate, never written": ("@%p9 st.global.b32 [%rd1], 1", "register", "predicate", "setp.eq.b32 %p9, %r0, 0; @%p9 st.global.b32 [%rd1], 1"),
    "a lane that is not there": ("setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1", "divergence", "ffffffff is run by lanes 0000ffff", "shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1"),
    "endless": ("again: setp.eq.b32 %p1, %r0, %r0; @%p1 bra again", "endless", "does not end", "mov.b32 %r1, 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_found(name, monkeypatch):
    monkeypatch.setattr("tests.emulation.program.LIMIT", 10_000, raising=True)
    faulty, kind, says, sound = CASES[name]
    setting = {"threads": 64, "grid": (2, 1, 1) if "program" in name else (1, 1, 1), "written": False}
    given = np.arange(1024, dtype=np.uint32)
    run(lines(sound), given, 256, **setting)
    with pytest.raises(Finding, match=says) as found:
        run(lines(faulty), given, 256, **setting)
    assert found.value.kind == kind
    assert kind == "deadlock" or "PTX line" in str(found.value)


def lines(text: str) -> str:
    """One statement a line; a label keeps its own."""
    parts = (part.strip() for part in text.replace("again:", "again:;").split(";"))
    return "\n".join(part if part.endswith(":") else f"\t{part};" for part in parts if part)


def test_a_finding_names_kernel_line_thread_and_what_it_conflicts_with():
    with pytest.raises(Finding) as found:
        run(lines(CASES["race of warps"][0]), np.arange(1024, dtype=np.uint32), 256, threads=64)
    told = str(found.value)
    for part in ("kernel snippet (sm_90a), program 0", "ld.shared.b32", "thread 32 (warp 1, lane 0)", "conflicts with thread 0", "st.shared.b32"):  # fmt: skip
        assert part in told


def test_any_order_of_the_warps_gives_the_same():
    text = f"{OWN} {FAR} st.shared.b32 [%r2], %r0; bar.sync 0; ld.shared.b32 %r5, [%r3]; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd1, %rd2; st.global.b32 [%rd3], %r5"
    bits, counts = run(lines(text), np.arange(64, dtype=np.uint32), 256, threads=64)
    assert np.array_equal(bits.view(np.uint32), np.arange(64) ^ 32)
    assert (counts.global_requests, counts.global_sectors, counts.global_ideal) == (2, 8, 8)
    assert (counts.shared_requests, counts.shared_wavefronts, counts.shared_ideal) == (4, 4, 4)


def test_bank_conflicts_are_counted():
    text = "shl.b32 %r1, %r0, 7; and.b32 %r1, %r1, 4095; add.s32 %r2, %r255, %r1; st.shared.b32 [%r2], %r0"
    _, counts = run(lines(text), np.arange(64, dtype=np.uint32), 256, threads=32)
    assert (counts.shared_wavefronts, counts.shared_ideal) == (32, 1)
