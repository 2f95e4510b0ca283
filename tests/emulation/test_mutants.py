"""Faults planted in compiled kernels are found, or told by the result, or redundant for a reason that is checked."""

from __future__ import annotations

import os

import pytest

from .mutants import SUITE, sweep

STEP = 1 if os.environ.get("EMULATION") == "whole" else 9
CASES = [(t, n) for t in ("sm_80", "sm_90") for n in SUITE if t == "sm_90" or n not in ("rotated", "specialized")]
FAST = [("sm_80", "forward"), ("sm_90", "forward")]


@pytest.mark.parametrize("target, name", CASES if STEP == 1 else FAST)
def test_planted_faults(target, name):
    numbers = iter(range(10**6))
    rows = list(sweep([target], [name], lambda mutant: next(numbers) % STEP == 0))
    missed = [r for r in rows if r["verdict"] == "survived" and not r["redundant"]]
    assert rows and not missed, missed
    seen = sum(r["verdict"] != "survived" for r in rows)
    assert seen >= len(rows) / 2, f"only {seen} of {len(rows)} faults are seen at all"
