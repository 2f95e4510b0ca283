"""The model of time, on loops whose time is known."""

from __future__ import annotations

import pytest

from .sass import Instruction


@pytest.fixture(scope="module")
def replay():
    from benchmarks.kernels import replay  # not at collection: it imports the compiler

    return replay


def one(text: str, *, stall: int = 1, sets: int = 7, waits: tuple[int, ...] = ()) -> Instruction:
    opcode, _, operands = text.partition(" ")
    control = stall | sets << 5 | 7 << 8 | sum(1 << 11 + number for number in waits)
    return Instruction(opcode, operands, False, control)


FMA, EXP, BACK = "FFMA R1, R2, R3, R1", "MUFU.EX2 R1, R2", "BRA `(.L_x_0)"
PRODUCT, LAST = "HGMMA.64x128x16.F32 R24, gdesc[UR8], R24", "HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def loop(*lines: str) -> list[Instruction]:
    return [one(line) for line in (*lines, BACK)]


@pytest.mark.parametrize(
    "lines, groups, expected",
    [
        ([FMA] * 99, 1, 100),  # one instruction a cycle
        ([FMA] * 99, 2, 200),
        ([EXP] * 50, 1, 400),  # 4 lanes for 32 threads
        ([EXP, *[FMA] * 6] * 50, 2, 800),  # the units overlap
        ([PRODUCT] * 7 + [LAST, WAIT], 2, 1024),  # one computes while the other waits
    ],
)
def test_the_slowest_unit_limits(replay, lines, groups, expected):
    assert replay.cycles(loop(*lines), groups) == pytest.approx(expected, rel=0.03)


def test_a_warp_that_waits_for_its_products_overlaps_nothing(replay):
    alone = replay.cycles(loop(*[PRODUCT] * 7, LAST, WAIT, *[FMA] * 400), 1)
    assert alone == pytest.approx(8 * 64 + 400 + replay.DRAIN, rel=0.03)
    issued = (8 - 1 - replay.QUEUED) * 64  # the last product waits for a place in the queue, and the warp for it
    assert replay.cycles(loop(*[PRODUCT] * 7, LAST, *[FMA] * 400, WAIT), 1) == pytest.approx(issued + 400, rel=0.03)


def test_stalls_and_scoreboards(replay):
    assert replay.cycles([one(FMA, stall=5), one(FMA, stall=5)], 1) == 10
    waiting = [one(EXP, sets=2), one(FMA, waits=(2,)), one(BACK)]
    assert replay.cycles(waiting, 1) == pytest.approx(replay.LATENCY["MUFU"] + 2, abs=2)
    other = [one(EXP, sets=2), one(FMA, waits=(3,)), one(BACK)]
    assert replay.cycles(other, 1) == 8


def test_groups_that_take_turns_issue_their_products_one_after_the_other(replay):
    """Two groups, each with 512 cycles of products and 300 of arithmetic: the products never stop."""
    body = ["BAR.SYNC R5, 0x100", *[PRODUCT] * 7, LAST, "BAR.ARV R6, 0x100", WAIT, *[FMA] * 300]
    assert replay.cycles(loop(*body), 2) == pytest.approx(1024, rel=0.05)
    assert replay.cycles(loop(*body), 1, programs=2) == pytest.approx(1024, rel=0.05)


def test_a_barrier_of_all_keeps_groups_together(replay):
    body = [*[PRODUCT] * 7, LAST, WAIT, *[FMA] * 400]
    together = replay.cycles(loop("BAR.SYNC.DEFER_BLOCKING 0x0", *body), 2)
    apart = replay.cycles(loop(*body), 2)
    assert together > 1.15 * apart
    own = replay.cycles(loop("BAR.SYNC.DEFER_BLOCKING 0x2, 0x80", *body), 2)  # 128 threads: one group
    assert own == pytest.approx(apart, abs=2 * replay.BARRIER)


def test_refusals(replay):
    with pytest.raises(ValueError, match="expected instructions with bits for scheduling"):
        replay.cycles([Instruction("FFMA", "R1, R2, R3, R1", False)], 1)
    with pytest.raises(RuntimeError, match="every warp waits for another"):
        replay.cycles(loop("BAR.SYNC R5, 0x100", "BAR.SYNC R5, 0x100", "BAR.ARV R6, 0x100"), 2)
