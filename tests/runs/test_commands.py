"""Profiles and evaluations on two processes: their tables are byte for byte those of one, also after a kill."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("diffusers")

import torch

import entropy_attn as ea
from entropy_attn.cli import main, rank
from entropy_attn.cli.parsing import parse_device
from tests.runs import work
from tests.support.processes import launch

PLAN = {"sizes": [24, 32], "scales": ["off", "logn"], "prompts": ["a", "b"], "steps": 2,
        "figures": False}  # fmt: skip
COMMAND = ["profile", "--sizes", "24,32", "--scale", "off,logn", "--prompt", "a", "--prompt", "b",
           "--steps", "2", "--device", "cpu"]  # fmt: skip
pytestmark = pytest.mark.slow

TABLES = ("entropy.csv", "heads.csv", "response.csv.gz", "layers.csv", "regimes.csv", "hold-entropy.json")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes: sums of several threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    """The profile of one process."""
    out = tmp_path_factory.mktemp("alone")
    assert main([*COMMAND, "--model", str(tiny_model), "--out", str(out)]) == 0
    return out


def of_runs(folder: Path) -> dict[str, bytes]:
    """All files of the runs but their times."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.glob("runs/**/*")) if path.is_file() and path.name != "run.json"}  # fmt: skip


def same_files(first: Path, second: Path, names=TABLES) -> None:
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert of_runs(first) == of_runs(second)


def test_two_processes_profile_what_one_does(tiny_model, alone, tmp_path):
    (first, result), (second, other) = launch(work.profile, tiny_model, tmp_path, PLAN)
    assert len(first) == len(second) == 2 and len({*first, *second}) == 4
    assert result == other and result[1:3] == (4, ["logn", "off"]) and "entropy" in result[3]
    same_files(alone, tmp_path, TABLES[:-1])  # the last one names the model
    plan, of_alone = (json.loads((folder / "plan.json").read_text()) for folder in (tmp_path, alone))
    assert plan["runs"] == of_alone["runs"] == 4


def test_a_killed_worker_loses_one_run_and_the_same_command_makes_it(tiny_model, alone, tmp_path):
    arguments = [*COMMAND, "--model", str(tiny_model), "--out", str(tmp_path), "--resume"]
    (code, out, err), killed = launch(work.command_with_a_kill, arguments)
    assert killed == -signal.SIGKILL and code == 2 and not out
    last = err.splitlines()[-1]
    assert last.startswith("entropy-attn: error: one of 2 processes has ended: ")
    assert last.endswith(f"3 of 4 runs are kept in {tmp_path}; --resume continues from there")
    (code, out, err), (other_code, other_out, other_err) = launch(work.command, arguments)
    assert code == other_code == 0, (err, other_err)
    assert "Written to" in out and not other_out and not other_err
    assert err.count("finished before") == 3 and not list((tmp_path / "runs").glob(".*"))
    same_files(alone, tmp_path)


def test_another_plan_is_refused_once(tiny_model, alone):
    before = of_runs(alone)
    arguments = [*COMMAND, "--model", str(tiny_model), "--out", str(alone), "--steps", "3", "--resume"]
    (code, out, err), (other_code, other_out, other_err) = launch(work.command, arguments)
    assert code == other_code == 2 and not out and not other_out
    assert err.startswith("entropy-attn: error: out: expected steps=2, as in the profile in ") and ", got 3: use" in err
    assert not other_err and of_runs(alone) == before


EVALUATE = {
    "scale": [
        "--sizes",
        "64,96",
        "--scale",
        "off,logn",
        "--steps",
        "1",
        "--limit",
        "3",
        "--batch",
        "2",
        "--scenes",
        "8",
    ],
    "guidance": ["--steps", "2", "--limit", "3", "--batch", "2", "--guidance", "tsam:alpha=2.5:steps=0..1"],
}


@pytest.mark.parametrize("name", EVALUATE)
def test_two_processes_evaluate_what_one_does(name, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["evaluate", name, *EVALUATE[name], "--device", "cpu", "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    (code, out, err), (other_code, other_out, other_err) = launch(work.command, [*arguments, str(tmp_path / "two")])
    assert code == other_code == 0, (err, other_err)
    assert "Written to" in out and "run " in err and not other_out and not other_err
    for table in (f"{name}.csv", "images.csv", "images.png"):
        assert (tmp_path / "one" / table).read_bytes() == (tmp_path / "two" / table).read_bytes(), table


def test_times_are_measured_by_one_process(tmp_path):
    answers = launch(work.command, ["evaluate", "cost", "--sizes", "64", "--device", "cpu", "--out", str(tmp_path)])
    for (code, out, err), said in zip(
        answers, ("entropy-attn: error: ", "entropy-attn: process 1: error: "), strict=True
    ):
        assert code == 2 and not out
        assert err.startswith(f"{said}evaluate cost: expected one process, because others would change its times")


def test_distributed_needs_a_folder_and_a_pipeline_of_its_own(tiny_pipe, tmp_path, monkeypatch):
    plan = {"sizes": [16], "scales": ["off"], "prompts": ["a"], "steps": 1}
    with pytest.raises(ValueError, match="out: expected the folder of the profile with distributed=True, got None"):
        ea.profile(tiny_pipe, **plan, distributed=True)
    with pytest.raises(TypeError, match="distributed: expected True or False, got 2"):
        ea.profile(tiny_pipe, **plan, out=tmp_path, distributed=2)
    from entropy_attn.profiling import call

    monkeypatch.setattr(call, "parallel_config_of", lambda denoiser: "ring")
    with pytest.raises(ValueError, match="distributed: expected False with a denoiser that is itself spread"):
        ea.profile(tiny_pipe, **plan, out=tmp_path, distributed=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "6"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)


def test_each_process_has_the_device_of_its_number_on_its_machine(four_gpus, monkeypatch):
    assert rank() == 6 and [parse_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:2", "cuda:2", "cuda:1", "cpu"]  # fmt: skip
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match=r"--device: expected a CUDA device for each .*LOCAL_RANK=4 and 4 visible"):
        parse_device("auto")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parse_device("auto") == "cuda" and rank() == 0
