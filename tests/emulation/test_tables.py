"""Compiled kernels on emulated cards against float64: a few; `make emulation` runs every row and option."""

from __future__ import annotations

import random

import pytest

from .card import emulated
from .cases import Case, refused, run
from .fuzz import SOUND, draw, outcome
from .tables import FEW, every_row


@pytest.mark.parametrize("case", FEW, ids=str)
def test_within_the_budget(case):
    with emulated(case.target):
        if refused(case):
            pytest.skip(refused(case)[0])
        assert run(case)


@pytest.mark.parametrize("number", range(4))
def test_random_calls(number):
    """With a fresh seed each time, which the failure names."""
    seed = random.SystemRandom().randrange(10**9)
    case = draw(random.Random(seed))
    told = outcome(case, "emulated")
    assert told.split(":")[0] in SOUND, f'{told}\npython -m tests.emulation.fuzz --repro "{case}"'


def test_a_case_is_its_line():
    for case in (draw(random.Random(seed)) for seed in range(200)):
        assert Case.parse(str(case)) == case


def test_every_row_means_every_row():
    """The widest head dim of each row of the plain forward table is among the calls."""
    from entropy_attn.kernels.configs import _POINTERS

    for target in ("sm_80", "sm_90", "sm_120"):
        asked = {c.head_dim for c in every_row(target) if c.dtype == "fp16" and c.seqlen_k == 77 and not c.map_stop}
        assert {row[0] for row in _POINTERS[target]} <= asked
