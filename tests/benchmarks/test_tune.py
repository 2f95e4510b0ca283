"""The script that chooses configurations on a GPU, here with the interpreter's candidates on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.common import read_rows, write_rows
from benchmarks.kernels import tune
from entropy_attn.bench.cases import Case
from entropy_attn.bench.implementations.contract import Ask
from entropy_attn.bench.timing import CpuClock
from entropy_attn.bench.workloads import Workload
from entropy_attn.kernels.common.targets import INTERPRETER
from entropy_attn.kernels.forward.configs import SCHEDULES
from entropy_attn.kernels.forward.measured import COLUMNS, table
from tests.support.interpreter import needs_interpreter

CPU = torch.device("cpu")
SMALL = Workload("tiny", "", "self", 1, 2, 70, 70, 16)


class OneRun(CpuClock):
    round_ms = 0.0


@pytest.fixture(scope="module")
def script():
    return tune


def tuned(script, task: str) -> list[dict]:
    case = Case(SMALL, Ask(task), torch.float32)
    configs = script.candidates(INTERPRETER, SMALL, torch.float32, SCHEDULES)
    return script.tune(case, configs, INTERPRETER, CPU, OneRun())


@needs_interpreter
@pytest.mark.parametrize("task", ["plain", "entropy"])
def test_the_fastest_correct_candidate_is_chosen(script, task):
    rows = tuned(script, task)
    assert len(rows) > 1 and {row["status"] for row in rows} == {"ok"}
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["ms"] == min(row["ms"] for row in rows)
    assert chosen["entropy"] == (task == "entropy")
    assert (chosen["torch_ms"] is None) == (task == "entropy")  # torch has no entropy to compare with


@needs_interpreter
def test_a_wrong_candidate_is_never_chosen(script, monkeypatch):
    right = script.attention_forward
    wrong = script.candidates(INTERPRETER, SMALL, torch.float32, SCHEDULES)[0]

    def spoiled(call, config):
        out, lse, entropy = right(call, config=config)
        return (out + 1e-3 if config == wrong else out), lse, entropy

    monkeypatch.setattr(script, "attention_forward", spoiled)
    rows = tuned(script, "plain")
    assert rows[0]["status"].startswith("wrong: out") and not rows[0]["chosen"] and rows[0]["ms"] is None
    assert sum(row["chosen"] for row in rows) == 1


@pytest.mark.slow
@needs_interpreter
def test_winners_are_adopted(script, tmp_path, monkeypatch):
    rows = tuned(script, "plain") + tuned(script, "entropy")
    about = {"device": "none", "triton": "3", "torch": "2", "commit": "0", "date": "2026-01-01"}
    results, kept = tmp_path / "tuning.csv", tmp_path / "measured.csv"
    write_rows(results, [row | about for row in rows], script.FIELDS)
    monkeypatch.setattr(script, "FILE", kept)
    assert script.adopt(results) == 2
    assert kept.read_text().splitlines()[0] == ",".join(COLUMNS)
    read = table.__wrapped__(kept)
    chosen = {row["entropy"]: row["ms"] for row in rows if row["chosen"]}
    assert {key[-1]: by_card["none"].ms for key, by_card in read.items()} == chosen


def test_the_fastest_of_the_schedules_winners_is_adopted(script, tmp_path, monkeypatch):
    """If each schedule of a shape was tuned separately, each has a winner."""
    shape = {"target": "sm_90", "head_dim": 64, "seqlen_q": 4096, "seqlen_k": 4096, "entropy": False, "chosen": True,
             "device": "a card"}  # fmt: skip
    times = {"plain": 1.5, "rotated": 0.9, "specialized": 10.0}
    rows = [{**shape, "schedule": name, "ms": ms} for name, ms in times.items()]
    rows += [{**shape, "head_dim": 128, "schedule": "plain", "ms": 2.0}]
    rows += [{**shape, "schedule": "rotated", "chosen": False, "ms": ""}]
    results, kept = tmp_path / "tuning.csv", tmp_path / "measured.csv"
    write_rows(results, rows, script.FIELDS)
    monkeypatch.setattr(script, "FILE", kept)
    assert script.adopt(results) == 2
    found = [(row["head_dim"], row["schedule"], row["ms"]) for row in read_rows(kept)]
    assert found == [("64", "rotated", "0.9"), ("128", "plain", "2.0")]


def test_adopting_one_card_keeps_the_rows_of_others(script, tmp_path, monkeypatch):
    shape = {"target": "sm_90", "head_dim": 64, "seqlen_q": 4096, "seqlen_k": 4096, "entropy": False, "chosen": True}
    results, kept = tmp_path / "tuning.csv", tmp_path / "measured.csv"
    monkeypatch.setattr(script, "FILE", kept)
    for card, ms in (("one", 2.0), ("other", 1.0), ("one", 3.0)):
        write_rows(results, [{**shape, "device": card, "schedule": "plain", "ms": ms}], script.FIELDS)
        assert script.adopt(results) == 1
    assert [(row["device"], row["ms"]) for row in read_rows(kept)] == [("other", "1.0"), ("one", "3.0")]


def test_one_file_may_have_the_results_of_several_cards(script, tmp_path, monkeypatch):
    shape = {"target": "sm_90", "head_dim": 64, "seqlen_q": 4096, "seqlen_k": 4096, "entropy": False, "chosen": True}
    results, kept = tmp_path / "tuning.csv", tmp_path / "measured.csv"
    monkeypatch.setattr(script, "FILE", kept)
    rows = [{**shape, "device": card, "schedule": "plain", "ms": ms} for card, ms in (("one", 2.0), ("other", 1.0))]
    write_rows(results, rows, script.FIELDS)
    assert script.adopt(results) == 2
    assert [(row["device"], row["ms"]) for row in read_rows(kept)] == [("one", "2.0"), ("other", "1.0")]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("pass", "ok"),
        ("raise SystemExit('no such unit')", "no such unit"),
        ("import time; time.sleep(60)", "within 2 s"),
    ],
)
def test_a_schedule_that_fails_or_hangs_is_reported(script, monkeypatch, code, outcome):
    monkeypatch.setattr(script, "PROBE_SECONDS", 2 if "sleep" in code else 60)
    monkeypatch.setattr(script, "command_of", lambda schedule: [sys.executable, "-c", code])
    assert outcome in script.works("rotated")
