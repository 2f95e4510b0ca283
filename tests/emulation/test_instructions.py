"""The arithmetic of single instructions, as bits, against tables written by hand from the text of the PTX ISA."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from . import build
from .parse import UnknownPtx
from .snippet import compute, run

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler: the emulated card is made of C")

NAN, INF, NEG_INF, NEG_0, TINY = 0x7FFFFFFF, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001
SOME_NAN = 0x7FC01234


def f(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


ROWS = [
    # round to nearest, ties to even; signed zeros; any NaN becomes the canonical NaN
    ("add.f32 d, a, b", [(f(1), f(2**-24)), (f(1), f(3 * 2**-24)), (NEG_0, NEG_0), (NEG_0, 0), (INF, NEG_INF),
      (SOME_NAN, 0)],
     [f(1), f(1 + 2**-22), NEG_0, 0, NAN, NAN]),
    ("add.f32 d, a, b", [(TINY, TINY)], [2]),
    ("add.ftz.f32 d, a, b", [(TINY, TINY), (0x80000001, NEG_0), (TINY, f(1))], [0, NEG_0, f(1)]),
    ("sub.f32 d, a, b", [(f(1), f(1)), (NEG_0, 0)], [0, NEG_0]),
    ("mul.f32 d, a, b", [(INF, 0), (NEG_0, f(3)), (f(2**-126), f(0.5))], [NAN, NEG_0, 0x00400000]),
    ("mul.ftz.f32 d, a, b", [(f(2**-126), f(0.5))], [0]),
    ("fma.rn.f32 d, a, b, c", [(f(1 + 2**-12), f(1 + 2**-12), f(-(1 + 2**-11))), (INF, 0, f(1)), (f(1), f(1), f(-1))],
     [f(2**-24), NAN, 0]),
    ("max.f32 d, a, b", [(SOME_NAN, f(1)), (f(1), SOME_NAN), (SOME_NAN, SOME_NAN), (NEG_0, 0), (0, NEG_0)],
     [f(1), f(1), NAN, 0, 0]),
    ("min.f32 d, a, b", [(SOME_NAN, f(1)), (NEG_0, 0), (0, NEG_0)], [f(1), NEG_0, NEG_0]),
    ("max.NaN.f32 d, a, b", [(SOME_NAN, f(1)), (f(1), f(2))], [NAN, f(2)]),
    ("max.f32 d, a, b, c", [(f(1), f(2), f(3)), (f(1), SOME_NAN, SOME_NAN)], [f(3), f(1)]),
    ("neg.f32 d, a", [(0,), (f(1),), (INF,)], [NEG_0, f(-1), NEG_INF]),
    ("abs.f32 d, a", [(NEG_0,), (f(-2),)], [0, f(2)]),
    ("abs.f16x2 d, a", [(0x8000C000,), (0x3C00FC00,)], [0x00004000, 0x3C007C00]),
    ("neg.bf16x2 d, a", [(0x80003F80,)], [0x0000BF80]),
    ("ex2.approx.ftz.f32 d, a", [(0,), (NEG_0,), (NEG_INF,), (INF,), (f(3),), (f(-127),), (SOME_NAN,), (TINY,)],
     [f(1), f(1), 0, INF, f(8), 0, NAN, f(1)]),
    ("lg2.approx.f32 d, a", [(f(1),), (0,), (f(8),), (f(-1),)], [0, NEG_INF, f(3), NAN]),
    ("rcp.approx.f32 d, a", [(f(4),), (0,), (NEG_0,), (INF,)], [f(0.25), INF, NEG_INF, 0]),
    ("div.full.f32 d, a, b", [(f(1), f(3)), (f(1), 0), (0, 0)], [f(1 / 3), INF, NAN]),
    # shifts by the width and beyond; wrapping; division
    ("shl.b32 d, a, b", [(1, 31), (1, 32), (1, 255), (0xFFFFFFFF, 4)], [0x80000000, 0, 0, 0xFFFFFFF0]),
    ("shr.u32 d, a, b", [(0x80000000, 31), (0x80000000, 32)], [1, 0]),
    ("shr.s32 d, a, b", [(0x80000000, 31), (0x80000000, 32), (0x40000000, 99)], [0xFFFFFFFF, 0xFFFFFFFF, 0]),
    ("add.s32 d, a, b", [(0x7FFFFFFF, 1), (0xFFFFFFFF, 1)], [0x80000000, 0]),
    ("mul.lo.s32 d, a, b", [(0x10000, 0x10000), (0xFFFFFFFF, 5)], [0, 0xFFFFFFFB]),
    ("mul.hi.u32 d, a, b", [(0x80000000, 4)], [2]),
    ("div.s32 d, a, b", [(0xFFFFFFF9, 2), (7, 0xFFFFFFFE)], [0xFFFFFFFD, 0xFFFFFFFD]),
    ("rem.s32 d, a, b", [(0xFFFFFFF9, 2), (7, 0xFFFFFFFE)], [0xFFFFFFFF, 1]),
    ("min.s32 d, a, b", [(0xFFFFFFFF, 1)], [0xFFFFFFFF]), ("min.u32 d, a, b", [(0xFFFFFFFF, 1)], [1]),
    ("bfe.u32 d, a, b, c", [(0xABCD1234, 8, 8), (0xFFFFFFFF, 0, 32), (0xFFFFFFFF, 28, 8), (0xFF, 0, 0)],
     [0x12, 0xFFFFFFFF, 0xF, 0]),
    ("bfe.s32 d, a, b, c", [(0x80, 7, 1), (0x70, 4, 3), (0x30, 4, 3)], [0xFFFFFFFF, 0xFFFFFFFF, 3]),
    ("prmt.b32 d, a, b, c", [(0x33221100, 0x77665544, 0x7531), (0x000000F0, 0, 0x8888)], [0x77553311, 0xFFFFFFFF]),
    ("lop3.b32 d, a, b, c, 0x96", [(0b1100, 0b1010, 0b0110)], [0]),
    # conversions
    ("cvt.rn.f16x2.f32 d, a, b",
     [(f(1), f(2)), (f(65520), f(65519.99)), (f(2**-25), f(2**-25 * 1.01)), (SOME_NAN, NEG_0)],
     [0x3C004000, 0x7C007BFF, 0x00000001, 0x7FFF8000]),
    ("cvt.rn.f16x2.f32 d, a, b", [(f(1 + 2**-11), f(1 + 3 * 2**-11))], [0x3C003C02]),
    ("cvt.rn.bf16x2.f32 d, a, b", [(f(1 + 2**-8), f(1 + 3 * 2**-8)), (SOME_NAN, f(-3.4e38))], [0x3F803F82, 0x7FFFFF80]),
    ("cvt.rn.f32.s32 d, a", [(0xFFFFFFFF,), (16777217,), (0x80000000,)], [f(-1), f(16777216), f(-2.0**31)]),
    ("cvt.rzi.s32.f32 d, a", [(f(-1.9),), (f(3e9),), (SOME_NAN,)], [0xFFFFFFFF, 0x7FFFFFFF, 0]),
]  # fmt: skip


def test_packed_halves_are_compared_one_by_one():
    body = """
	mov.b32 %r1, 0x7E008000;
	mov.b32 %r2, 0x7E000000;
	setp.eq.f16x2 %p1|%p2, %r1, %r2;
	setp.neu.f16x2 %p3|%p4, %r1, %r2;
	selp.b32 %r3, 1, 0, %p1;
	selp.b32 %r4, 1, 0, %p2;
	selp.b32 %r5, 1, 0, %p3;
	selp.b32 %r6, 1, 0, %p4;
	st.global.v4.b32 [%rd1], {%r3, %r4, %r5, %r6};
"""
    bits, _ = run(body, np.zeros(4, np.uint32), 16, threads=32)
    assert bits.view(np.uint32).tolist() == [1, 0, 0, 1]  # -0 equals 0, and NaN equals nothing


LANES = [7, 0xFFFFFFFE, 12, *[9] * 29]
REDUCED = [
    ("max.s32", 12), ("max.u32", 0xFFFFFFFE), ("min.s32", 0xFFFFFFFE), ("min.u32", 7), ("add.s32", 17 + 29 * 9),
    ("and.b32", 0), ("or.b32", 0xFFFFFFFF), ("xor.b32", 7 ^ 0xFFFFFFFE ^ 12 ^ 9),
]  # fmt: skip


@pytest.mark.parametrize("how, expected", REDUCED)
def test_a_warp_reduces(how, expected):
    assert set(compute(f"redux.sync.{how} d, a, -1", [(x,) for x in LANES])) == {expected}


@pytest.mark.parametrize("instruction, operands, expected", ROWS, ids=[f"{k}-{r[0]}" for k, r in enumerate(ROWS)])
def test_by_hand(instruction, operands, expected):
    assert [hex(x) for x in compute(instruction, operands)] == [hex(x) for x in expected]


OTHER_TYPES = [
    ("mul.wide.s32 d, a, b", "b64", (), [(0xFFFFFFFF, 2)], [2**64 - 2]),
    ("mul.wide.u32 d, a, b", "b64", (), [(0xFFFFFFFF, 2)], [0x1FFFFFFFE]),
    ("mad.wide.s32 d, a, b, c", "b64", ("b32", "b32", "b64"), [(0xFFFFFFFF, 1, 5)], [4]),
    ("cvt.s64.s32 d, a", "b64", (), [(0x80000000,)], [0xFFFFFFFF80000000]),
    ("cvt.u64.u32 d, a", "b64", (), [(0x80000000,)], [0x80000000]),
    ("cvt.s64.s32 d, a", "b64", ("b64",), [(0x1_80000000,)], [0xFFFFFFFF80000000]),
    ("shl.b64 d, a, b", "b64", ("b64", "b32"), [(1, 63), (1, 64)], [1 << 63, 0]),
    ("add.f32x2 d, a, b", "b64", ("b64", "b64"), [(f(1) << 32 | f(2), f(3) << 32 | f(4))], [f(4) << 32 | f(6)]),
    ("fma.rn.f32.f16 d, a, b, c", "b32", ("b16", "b16", "b32"), [(0x3C00, 0x4000, f(0.5))], [f(2.5)]),
    ("cvt.f32.f16 d, a", "b32", ("b16",), [(0x0001,), (0x7C00,), (0x8000,)], [f(2**-24), INF, NEG_0]),
    ("shr.u16 d, a, b", "b16", ("b16", "b32"), [(0x8000, 8), (0x8000, 16)], [0x80, 0]),
    ("setp.lt.f32 d, a, b", "pred", (), [(f(1), f(2)), (SOME_NAN, f(2)), (NEG_0, 0)], [1, 0, 0]),
    ("setp.geu.f32 d, a, b", "pred", (), [(f(1), f(2)), (SOME_NAN, f(2))], [0, 1]),
    ("setp.ne.f32 d, a, b", "pred", (), [(SOME_NAN, SOME_NAN), (f(1), f(2))], [0, 1]),
    ("setp.eq.f16 d, a, b", "pred", ("b16", "b16"), [(0x8000, 0), (0x7E00, 0x7E00)], [1, 0]),
    ("setp.lt.s32 d, a, b", "pred", (), [(0xFFFFFFFF, 0)], [1]),
    ("setp.lt.u32 d, a, b", "pred", (), [(0xFFFFFFFF, 0)], [0]),
]  # fmt: skip


@pytest.mark.parametrize("instruction, result, kinds, operands, expected", OTHER_TYPES, ids=lambda x: str(x)[:24])
def test_of_other_types(instruction, result, kinds, operands, expected):
    assert [hex(x) for x in compute(instruction, operands, result, kinds)] == [hex(x) for x in expected]


def test_a_store_truncates_a_wider_register():
    body = """
    ld.global.b64 %rd2, [%rd0];
    st.global.b32 [%rd1], %rd2;
    st.global.b16 [%rd1+4], %rd2;
    """
    given = np.array([0x11223344_55667788], dtype=np.uint64)
    result, _ = run(body, given, 6)
    assert result.tobytes() == bytes.fromhex("887766558877")


def test_ex2_is_within_two_ulp():
    x = np.random.default_rng(0).uniform(-126, 126, 32 * 64).astype(np.float32)
    body = "\n".join(
        ["	mul.wide.u32 %rd2, %r0, 4;", "	add.s64 %rd3, %rd0, %rd2;", "	add.s64 %rd4, %rd1, %rd2;"]
        + [
            line
            for k in range(64)
            for line in (
                f"	ld.global.b32 %r1, [%rd3+{128 * k}];", "	ex2.approx.ftz.f32 %r2, %r1;",
                f"	st.global.b32 [%rd4+{128 * k}], %r2;",
            )
        ]
    )  # fmt: skip
    bits, _ = run(body, x, x.nbytes)
    truth = np.exp2(x.astype(np.float64))
    ulp = np.spacing(truth.astype(np.float32)).astype(np.float64)
    assert (np.abs(bits.view(np.float32) - truth) <= 2 * ulp).all()


@pytest.mark.parametrize("half, narrow", [("f16", np.float16)])
def test_every_half_survives_a_round_trip_through_float32(half, narrow):
    halves = np.arange(65536, dtype=np.uint16)
    body = """
	mul.wide.u32 %rd2, %r0, 2;
	add.s64 %rd3, %rd0, %rd2;
	add.s64 %rd4, %rd1, %rd2;
	mov.b32 %r3, 0;
again:
	ld.global.b16 %rs1, [%rd3];
	cvt.f32.f16 %r1, %rs1;
	cvt.rn.f16.f32 %rs2, %r1;
	st.global.b16 [%rd4], %rs2;
	add.s64 %rd3, %rd3, 64;
	add.s64 %rd4, %rd4, 64;
	add.s32 %r3, %r3, 1;
	setp.lt.s32 %p1, %r3, 2048;
	@%p1 bra again;
"""
    bits, _ = run(body, halves, halves.nbytes)
    numbers = halves[~np.isnan(halves.view(narrow))]
    assert np.array_equal(bits.view(np.uint16)[numbers], numbers)
    assert (bits.view(np.uint16)[np.isnan(halves.view(narrow))] == 0x7FFF).all()


@pytest.mark.parametrize(
    "instruction",
    ["sin.approx.f32 d, a", "add.rz.f32 d, a, b", "max.s32 d, a, b, c", "add.sat.f32 d, a, b", "cvt.rz.f16.f32 d, a"],
)
def test_an_unknown_instruction_is_named(instruction):
    with pytest.raises(UnknownPtx, match=instruction.split()[0].replace(".", r"\.")):
        compute(instruction, [(0,) * (len(instruction.split(",")) - 1)])
