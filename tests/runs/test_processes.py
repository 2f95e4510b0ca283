"""Runs that several processes divide between them: who makes what, and what a failure or a kill leaves."""

from __future__ import annotations

import re
import signal

import pytest

from entropy_attn.runs.folder import RunFolder, finished_runs
from entropy_attn.runs.processes import ALONE, Processes, launched
from tests.runs import work
from tests.runs.work import NAMES, PLAN
from tests.support.processes import launch
from tests.support.torchrun import torchrun

DEAREST_FIRST = sorted(NAMES, key=work.size_of, reverse=True)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_every_run_is_dealt_once_and_the_dearest_first(count):
    shares = [Processes(rank, count).share(NAMES, work.size_of) for rank in range(count)]
    assert sorted(name for share in shares for name in share) == sorted(NAMES)
    assert [share[0] for share in shares if share] == DEAREST_FIRST[:count]
    for share in shares:
        assert [work.size_of(name) for name in share] == sorted(map(work.size_of, share), reverse=True)
    if count < 4:
        totals = [sum(map(work.size_of, share)) for share in shares]
        assert max(totals) - min(totals) <= 1


def test_shares_go_forth_and_back():
    shares = [Processes(rank, 2).share("54321", int) for rank in range(2)]
    assert shares == [["5", "2", "1"], ["4", "3"]]  # 8 and 7; in turns that only go forth 9 and 6
    assert ALONE.share("123", int) == ["1", "2", "3"]
    assert Processes(1, 2).share("123") == ["2", "3"]


def test_a_process_alone_has_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched() as processes:
        assert processes is ALONE and processes.from_first(lambda: 3) == 3


def test_an_announced_process_that_cannot_be_reached_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK expected, but not set"), launched():
        pass


def test_two_processes_make_each_run_once(tmp_path):
    first, second = launch(work.write, tmp_path)
    assert first[0] + second[0] != NAMES and sorted(first[0] + second[0]) == sorted(NAMES)
    assert first[0] == Processes(0, 2).share(NAMES, work.size_of)
    assert [name for name, *_ in first[1]] == first[0] and {count for *_, count in first[1]} == {12}
    assert first[1][-1][2] <= 12
    # Another number of processes finds them
    again = launch(work.write, tmp_path, count=3)
    assert [made for made, _ in again] == [[], [], []]
    assert again[0][1] == [(name, None, number, 12) for number, name in enumerate(NAMES, start=1)]
    RunFolder(tmp_path, PLAN, NAMES).complete(lambda name, folder: pytest.fail(name))


def test_a_killed_process_loses_the_run_that_it_was_at(tmp_path):
    failed, code = launch(work.be_killed, tmp_path)
    assert code == -signal.SIGKILL
    assert failed[0] == "OtherProcessFailed" and failed[1].startswith("one of 2 processes has ended: ")
    first, second = (Processes(rank, 2).share(NAMES, work.size_of) for rank in range(2))
    runs = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {name for name in runs if name[0] != "."} == {*first, second[0]}
    assert [name.split(".")[1] for name in runs if name[0] == "."] == [second[1]]
    resumed = launch(work.write, tmp_path, count=3)
    assert sorted(name for made, _ in resumed for name in made) == sorted(second[1:])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(NAMES)


def test_torchrun_starts_a_killed_process_again(tmp_path):
    runs, counts = tmp_path / "runs-folder", tmp_path / "counts"
    counts.mkdir()
    done = torchrun("tests.runs.work", 2, str(runs), str(counts), restarts=1)
    assert done.code == 0 and "exitcode: -9" in done.output, done.output
    made = [int((counts / str(rank)).read_text()) for rank in range(2)]
    assert 5 <= sum(made) <= 11  # process 1 left at least its own 5, process 0 made at least one
    RunFolder(runs, PLAN, NAMES).complete(lambda name, folder: pytest.fail(name))


def test_an_exception_in_one_process_is_one_in_all_when_their_runs_are_made(tmp_path):
    first, second = launch(work.fail, tmp_path)
    lost = Processes(1, 2).share(NAMES, work.size_of)[1]
    assert first[0][:2] == ("OtherProcessFailed", f"process 1 of 2: ValueError: no {lost}") and not first[0][2]
    assert second[0] == ("ValueError", f"no {lost}", [f"process 1 of 2: ValueError: no {lost}; waiting for the others"])
    assert max(first[1], second[1]) < 120 and not first[2] and not second[2]
    assert finished_runs(tmp_path) == (7, 12)  # all of the first process, one of the second


def test_a_wait_can_be_interrupted(tmp_path):
    first, second = launch(work.be_interrupted, tmp_path)
    assert first == "interrupted" and second[0] == "OtherProcessFailed"


def test_another_plan_is_refused_in_every_process(tmp_path):
    RunFolder(tmp_path, {"model": "other"}, NAMES)
    first, second = launch(work.write, tmp_path)
    assert first[0] == "ValueError" and re.match(r"out: expected model='other', as in .*, got 'm'", first[1])
    assert second == ("OtherProcessFailed", f"process 0 of 2: ValueError: {first[1]}")
    assert not list((tmp_path / "runs").iterdir())


def test_processes_with_different_plans_are_refused(tmp_path):
    first, second = launch(work.write_other_plans, tmp_path)
    assert second[0] == "ValueError" and "out: expected rank=0, as in" in second[1] and "got 1" in second[1]
    assert first == ("OtherProcessFailed", f"process 1 of 2: ValueError: {second[1]}")
    assert not list((tmp_path / "runs").iterdir())


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    first, second = launch(work.write_apart, tmp_path)
    assert second[0] == "ValueError" and "out: expected a folder that all processes share, with plan.json" in second[1]
    assert first[0] == "OtherProcessFailed"


def test_groups_do_not_outlive_their_use():
    for found in launch(work.several_times):
        assert found == [(0, "x"), False] * 5 + [2, True]


def test_a_group_of_accelerate_is_used():
    pytest.importorskip("accelerate")
    import torch

    alone = 1 if not torch.accelerator.is_available() else 2
    assert launch(work.after_accelerate) == [(alone, 2, True)] * 2


def test_another_number_of_processes_than_the_group_has_is_refused():
    for found in launch(work.mismatch):
        assert found == ("ValueError", "WORLD_SIZE: expected the size of the process group, 2, got 3")
