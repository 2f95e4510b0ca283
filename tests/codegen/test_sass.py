"""The reader of machine code, on listings: no kernel is compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import sass

# A loop of the rotated schedule (sm_90, head dim 16, tile 64 x 16, entropy on), what is around it, and two of the loops
# that wait for a barrier, from behind the program's EXIT.
RECORDED = (Path(__file__).parent / "recorded" / "rotated.sass").read_text()


def listing(*lines: str) -> str:
    """As the disassembler writes: labels, and instructions after their addresses."""
    return "\n".join(
        line if line.startswith(".L") else f"        /*{16 * i:04x}*/                   {line} ;"
        for i, line in enumerate(lines)
    )


def test_a_recorded_loop():
    found = sass.read(RECORDED)
    counted = sass.histogram(found.loop)
    assert (len(found.loop), counted["HGMMA"], counted["MUFU.EX2"], counted["FFMA"]) == (169, 2, 10, 20)
    assert found.exp_in_flight == 8
    assert found.loop_registers == 54
    assert found.spills == found.arrivals == 0
    assert found.loop[-1].opcode == "BRA" and found.loop[-1].predicated
    assert len(found.instructions) == RECORDED.count(";")


ISSUE, END = "HGMMA.64x128x16.F32 R24, gdesc[UR8], R24", "HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0"
EXP, WAIT, WAIT_ALL_BUT_ONE = "MUFU.EX2 R1, R2", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"


@pytest.mark.parametrize(
    "body, expected",
    [
        ((ISSUE, END, WAIT, EXP, EXP), 0),  # waits before the exponentials
        ((ISSUE, END, EXP, WAIT, EXP), 1),
        ((EXP, ISSUE, END, WAIT), 0),
        ((EXP, WAIT, ISSUE, END), 1),  # in flight over the loop's end
        ((END, END, WAIT_ALL_BUT_ONE, EXP, WAIT, EXP), 1),  # one of two groups still runs
        ((END, WAIT_ALL_BUT_ONE, EXP, EXP), 2),
        ((ISSUE, EXP), 0),  # no group has ended: nothing says that it runs
    ],
)
def test_exponentials_in_flight(body, expected):
    found = sass.read(listing(".L_x_0:", *body, "@P0 BRA `(.L_x_0)", "EXIT"))
    assert found.exp_in_flight == expected


def test_the_hottest_loop_is_the_innermost_with_most_products():
    inner = ["MUFU.EX2 R1, R2", END, END, "@P0 BRA `(.L_x_1)"]
    outer = [".L_x_0:", "MOV R1, R2", ".L_x_1:", *inner, "@P1 BRA `(.L_x_0)"]
    other = [".L_x_2:", END, "@P0 BRA `(.L_x_2)", "EXIT"]
    assert [i.name for i in sass.read(listing(*outer, *other)).loop] == ["MUFU.EX2", "HGMMA", "HGMMA", "BRA"]


def test_a_loop_that_waits_inside_does_not_hide_the_loop_around_it():
    wait = [".L_x_1:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R6", "@!P0 BRA `(.L_x_1)"]
    assert len(sass.read(listing(".L_x_0:", *wait, END, EXP, "@P1 BRA `(.L_x_0)", "EXIT")).loop) == 5


def test_a_jump_back_from_behind_the_exit_is_no_loop():
    text = listing(".L_x_0:", END, EXP, "EXIT", ".L_x_1:", "NOP", "BRA `(.L_x_0)")
    assert list(sass.read(text).loop) == []
    conditional = listing(".L_x_0:", END, EXP, "@P0 EXIT", "BRA `(.L_x_0)")
    assert len(sass.read(conditional).loop) == 4


def test_without_products_the_loop_with_most_fma():
    text = listing(".L_x_0:", "FADD R1, R1, R2", "@P0 BRA `(.L_x_0)", ".L_x_1:", "FFMA R1, R2, R3, R1",
                   "@P0 BRA `(.L_x_1)", "EXIT")  # fmt: skip
    assert [i.name for i in sass.read(text).loop] == ["FFMA", "BRA"]


def test_modifiers_predicates_and_dual_issue():
    (product,) = sass.read(listing(END)).instructions
    assert (product.opcode, product.operands) == ("HGMMA.64x128x16.F32", "R24, gdesc[UR8], R24, gsb0")
    text = "        /*0010*/              { @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;\n        /*0020*/  MUFU.RCP R9, R254 ;"
    first, second = sass.read(text).instructions
    assert (first.name, first.predicated, first.operands) == ("UIADD3", True, "UR4, UR4, 0x1, URZ")
    assert (second.name, second.opcode, second.predicated) == ("MUFU.RCP", "MUFU.RCP", False)


def test_registers_spills_and_turns():
    text = listing("STL [R1], R250", ".L_x_0:", "LDL R2, [R1+0x4]", "BAR.ARV R5, 0x100", "BAR.SYNC R6, 0x100",
                   "FFMA R96.reuse, R4, UR200, RZ", END, "@P0 BRA `(.L_x_0)", "EXIT")  # fmt: skip
    found = sass.read(text)
    assert (found.spills, found.arrivals, found.loop_registers) == (2, 1, 97)
    assert sass.read("").loop_registers == 0
