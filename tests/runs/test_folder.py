"""A folder of finished runs: what an interruption leaves, and what another plan is answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from entropy_attn.runs.folder import PLAN, RunFolder, finished_runs, plan_hash

NAMES = ["a", "b=1.5", "c"]
FACTS = {"model": "m", "steps": 2}


def write(name, folder):
    (folder / "text").write_text(name)
    return {"images": 1}


def test_a_run_is_made_once_and_read_again(tmp_path):
    store = RunFolder(tmp_path / "new", FACTS, NAMES)
    seen = []
    store.complete(write, lambda *run: seen.append(run))
    assert [(name, number, count) for name, _, number, count in seen] == [("a", 1, 3), ("b=1.5", 2, 3), ("c", 3, 3)]
    again = RunFolder(tmp_path / "new", FACTS, NAMES)
    assert not again.missing() and again.path("b=1.5").joinpath("text").read_text() == "b=1.5"
    again.complete(lambda name, folder: pytest.fail(name), lambda *run: seen.append(run))
    assert [seconds for _, seconds, *_ in seen[3:]] == [None] * 3
    assert again.read("a")["images"] == 1 and finished_runs(tmp_path / "new") == (3, 3)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_nothing(tmp_path, failure):
    store = RunFolder(tmp_path, FACTS, NAMES)

    def make(name, folder):
        write(name, folder)
        if name == "b=1.5":
            raise failure

    with pytest.raises(failure):
        store.complete(make)
    assert store.missing() == ["b=1.5", "c"] and [p.name for p in (tmp_path / "runs").iterdir()] == ["a"]


def test_a_killed_process_leaves_whole_runs(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from entropy_attn.runs.folder import RunFolder\n"
        f"store = RunFolder(pathlib.Path(sys.argv[1]), {FACTS!r}, {NAMES!r})\n"
        "def make(name, folder):\n"
        "    (folder / 'text').write_text(name)\n"
        "    if name == 'b=1.5': print('half', flush=True); time.sleep(60)\n"
        "store.complete(make)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    finally:
        process.kill()
    assert finished_runs(tmp_path) == (1, 3)
    store = RunFolder(tmp_path, FACTS, NAMES)
    assert store.missing() == ["b=1.5", "c"]
    store.complete(write)
    assert store.read("c")["seconds"] >= 0 and finished_runs(tmp_path) == (3, 3)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(NAMES)


def test_of_two_processes_with_the_same_run_the_first_one_stays(tmp_path):
    first, second = (RunFolder(tmp_path, FACTS, NAMES) for _ in range(2))

    def slow(name, folder):
        pid = os.getpid
        try:  # the other one is another process, which finishes meanwhile
            os.getpid = lambda: -1
            first.add(name, lambda name, folder: (folder / "text").write_text("first") and None)
        finally:
            os.getpid = pid
        (folder / "text").write_text("second")

    second.add("a", slow)
    assert (second.path("a") / "text").read_text() == "first" and len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, r"out: expected steps=2, as in the evaluation in .*, got 3: use the old value, or another"),
        ({"device": "x"}, r"expected device=None, as in .*, got 'x'"),
    ],
)
def test_another_plan_is_refused_by_name(tmp_path, change, message):
    RunFolder(tmp_path, FACTS, NAMES).complete(write)
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path, {**FACTS, **change}, NAMES)
    assert json.loads((tmp_path / PLAN).read_text())["plan"] == FACTS


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="runs: expected different names"):
        RunFolder(tmp_path, FACTS, ["a", "a"])
    with pytest.raises(ValueError, match=r"runs: expected names of letters.*got '\.\./a'"):
        RunFolder(tmp_path, FACTS, ["../a"])
    store = RunFolder(tmp_path, FACTS, NAMES)
    with pytest.raises(ValueError, match="name: expected a run of the plan, got 'z'"):
        store.add("z", write)
    store.complete(write)
    record = store.path("a") / "run.json"
    record.write_text(record.read_text().replace(store.hash, "0123"))
    with pytest.raises(ValueError, match=r"expected a run of plan .*, got 0123"):
        store.read("a")
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json' is not the plan of an evaluation"):
        RunFolder(tmp_path, FACTS, NAMES)
    assert finished_runs(tmp_path) is None and finished_runs(tmp_path / "none") is None


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    with pytest.raises(ValueError, match=r"out: expected a folder without runs/, or with its plan.json, got "):
        RunFolder(tmp_path, FACTS, NAMES)
    (tmp_path / "runs" / "mine").unlink()
    RunFolder(tmp_path, FACTS, NAMES, "profile")
    with pytest.raises(ValueError, match=r"plan\.json' is not the plan of an evaluation: remove it, or use"):
        RunFolder(tmp_path, FACTS, NAMES)
    assert finished_runs(tmp_path) is None and finished_runs(tmp_path, "profile") == (0, 3)


def test_hash_is_that_of_the_values():
    assert plan_hash({"a": 1, "b": [2]}) == plan_hash({"b": [2], "a": 1}) != plan_hash({"a": 1, "b": [3]})
