"""A few calls of compiled kernels on emulated cards, against float64; `make emulate` runs every row and option."""

from __future__ import annotations

import os
import random

import pytest

from entropy_attn.kernels.backward import launch as launch_backward

from .card import emulated
from .cases import Case, refused, run
from .conftest import SEED
from .fuzz import draw, outcome, sound
from .program import Program
from .tables import FEW, STATISTICS, every_row

WORK = 2e7  # largest work of a random call, so that forty calls take a minute or two


@pytest.mark.parametrize("case", FEW, ids=str)
def test_within_the_budget(case):
    with emulated(case.target):
        if refused(case):
            pytest.skip(refused(case)[0])
        assert run(case)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_descriptors_in_the_backward(head_dim, monkeypatch):
    """As with a Triton whose loops by pointer have one stage."""
    monkeypatch.setattr(launch_backward, "lacks_fence", lambda target: True)
    case = Case("sm_90", seqlen_q=140, seqlen_k=150, head_dim=head_dim, head_dim_v=head_dim, grads=STATISTICS)
    fetching = set()

    def seen(program: Program) -> Program:
        if "cp.async.bulk.tensor" in program.text:
            fetching.add(program.kernel.name)
        return program

    with emulated(case.target, edit=seen):
        assert run(case)
    assert {"attention_backward_query", "attention_backward_key"} <= fetching


@pytest.mark.parametrize("part", range(5))
def test_random_calls(part):
    """With a new seed each time: the summary of the run names the seed, and a failure names the case."""
    rng = random.Random(f"{os.environ[SEED]}-{part}")
    bad = [
        (case, result) for case in (draw(rng, WORK) for _ in range(4)) if not sound(result := outcome(case, "emulated"))
    ]
    assert not bad, "\n".join(f'{result}\npython -m tests.emulation.fuzz --repro "{case}"' for case, result in bad)


def test_a_case_equals_its_parsed_line():
    for case in (draw(random.Random(seed)) for seed in range(200)):
        assert Case.parse(str(case)) == case


def test_every_row_is_covered():
    """The widest head dim of each row of the plain forward table is among the calls."""
    from entropy_attn.kernels.forward.configs import _POINTERS

    for target in ("sm_80", "sm_90", "sm_120"):
        asked = {c.head_dim for c in every_row(target) if c.dtype == "fp16" and c.seqlen_k == 77 and not c.map_stop}
        assert {row[0] for row in _POINTERS[target]} <= asked
