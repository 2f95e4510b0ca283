"""Faults planted in compiled kernels are found, or make the result wrong, or are harmless for a checked reason."""

from __future__ import annotations

import pytest

from .mutants import sweep

STEP = 9  # every ninth fault; `make emulate` plants all of them, in every kernel


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_planted_faults(target):
    numbers = iter(range(10**6))
    rows = list(sweep([target], ["forward"], lambda mutant: next(numbers) % STEP == 0))
    missed = [r for r in rows if r["verdict"] == "survived" and not r["redundant"]]
    assert rows and not missed, missed
    seen = sum(r["verdict"] != "survived" for r in rows)
    assert seen >= len(rows) / 2, f"only {seen} of {len(rows)} faults were detected"
