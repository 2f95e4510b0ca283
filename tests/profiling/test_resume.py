"""The files of an interrupted profile, and how it is resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

pytest.importorskip("typer")
pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.cli import main
from entropy_attn.runs.folder import PLAN as PLAN_FILE

PLAN = {"sizes": [16, 32], "scales": ["off", "logn"], "prompts": ["a"], "steps": 1, "figures": False}


class Stop(Exception):
    pass


def stop_after(count: int):
    def on_run(run, seconds, number, of):
        if number == count:
            raise Stop

    return on_run


@pytest.fixture
def interrupted(tiny_pipe, tmp_path):
    with pytest.raises(Stop):
        ea.profile(tiny_pipe, **PLAN, out=tmp_path, on_run=stop_after(2))
    return tmp_path


def test_finished_runs_are_in_the_folder_and_the_others_are_run_later(tiny_pipe, interrupted, tmp_path_factory):
    assert sorted(path.name for path in (interrupted / "runs").iterdir()) == ["16x16-logn-seed0", "16x16-off-seed0"]
    for run in (interrupted / "runs").iterdir():
        assert {"entropy.csv", "heads.csv", "prompt0.png", "run.json"} <= {path.name for path in run.iterdir()}
    half = interrupted / "runs" / ".32x32-off-seed0.elsewhere.7"  # as if another process had been killed
    half.mkdir()
    (half / "entropy.csv").write_text("32x32,32,32,off,0,down_bl")
    runs = []
    resumed = ea.profile(tiny_pipe, **PLAN, out=interrupted, resume=True, on_run=lambda *run: runs.append(run))
    assert [seconds is None for _, seconds, _, _ in runs] == [True, True, False, False]
    assert [number for _, _, number, _ in runs] == [1, 2, 3, 4] and not half.exists()
    complete = ea.profile(tiny_pipe, **PLAN, out=tmp_path_factory.mktemp("complete"))
    for name in ("entropy", "heads"):
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(complete, name), rtol=1e-4)
    assert resumed.pictures.keys() == complete.pictures.keys() and resumed.maps.keys() == complete.maps.keys()
    again = ea.profile(tiny_pipe, **PLAN, out=interrupted, resume=True, on_run=lambda *run: runs.append(run))
    assert all(seconds is None for _, seconds, _, _ in runs[4:])
    pd.testing.assert_frame_equal(again.entropy, resumed.entropy)


def test_without_a_folder_the_numbers_are_the_same(tiny_pipe, tmp_path):
    plan = {**PLAN, "sizes": [16]}
    kept, written = ea.profile(tiny_pipe, **plan), ea.profile(tiny_pipe, **plan, out=tmp_path)
    pd.testing.assert_frame_equal(kept.entropy, written.entropy, check_dtype=False, rtol=1e-4)
    assert kept.entropy.dtypes.astype(str).tolist()[8:] == written.entropy.dtypes.astype(str).tolist()[8:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [16]}, r"expected sizes=\['16x16', '32x32'\], as in .*, got \['16x16'\]"),
        ({"steps": 2}, "expected steps=1, as in .*, got 2"),
        ({"scales": ["off", "logn:strength=2"]}, r"expected policies=\{'off': "),
        ({"prompts": ["b"]}, r"expected prompts=\['a'\], as in .*, got \['b'\]"),
        ({"heads": True}, "expected heads=False, as in .*, got True"),
        ({"about": {"revision": "x"}}, "expected revision=None, as in .*, got 'x'"),
    ],
)
def test_another_plan_is_refused(tiny_pipe, interrupted, change, message):
    before = sorted(interrupted.rglob("*"))
    with pytest.raises(ValueError, match=message):
        ea.profile(tiny_pipe, **{**PLAN, **change}, out=interrupted, resume=True)
    assert sorted(interrupted.rglob("*")) == before


def test_an_interrupted_profile_is_not_replaced(tiny_pipe, interrupted):
    with pytest.raises(
        ValueError, match=r"interrupted profile, with 2 of 4 runs finished: resume it, use another folder"
    ):
        ea.profile(tiny_pipe, **PLAN, out=interrupted)
    (interrupted / PLAN_FILE).write_text("{")
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"plan\.json' is not the plan of a profile"):
            ea.profile(tiny_pipe, **PLAN, out=interrupted, resume=resume)
    assert len(list((interrupted / "runs").iterdir())) == 2


def test_the_same_call_with_resume_begins_and_continues(tiny_pipe, tmp_path):
    plan = {**PLAN, "sizes": [16], "scales": ["off"]}
    times = [ea.profile(tiny_pipe, **plan, out=tmp_path, resume=True).runs["seconds"].item() for _ in range(2)]
    assert times[0] == times[1]


def test_a_finished_profile_is_replaced_as_a_whole(tiny_pipe, tmp_path):
    first = ea.profile(tiny_pipe, **{**PLAN, "sizes": [16, 24]}, heads=True, out=tmp_path)
    assert first.files["entropy"].name == "entropy.csv.gz"
    second = ea.profile(tiny_pipe, **{**PLAN, "sizes": [16]}, out=tmp_path)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"16x16-off-seed0", "16x16-logn-seed0"}
    assert not (tmp_path / "entropy.csv.gz").exists() and set(pd.read_csv(second.files["entropy"])["size"]) == {"16x16"}
    assert second.runs["seconds"].iloc[0] != first.runs["seconds"].iloc[0]


def test_a_folder_of_something_else_is_left_alone(tiny_pipe, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"out: expected a folder without runs/, or with its plan.json"):
        ea.profile(tiny_pipe, **PLAN, out=tmp_path)
    assert (tmp_path / "runs" / "mine").is_dir()


def test_ctrl_c_keeps_finished_runs_and_reports_them(tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "profile",
        "--model",
        str(tiny_model),
        "--sizes",
        "16",
        "--scale",
        "off",
        "--prompt",
        "a",
        "--steps",
        "4",
        "--seeds",
        ",".join(map(str, range(30))),
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "entropy_attn", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )
    try:
        lines = []
        for line in process.stderr:  # a line for each run, because stderr is not a terminal
            lines.append(line)
            if "run 1 of 30" in line:
                process.send_signal(signal.SIGINT)
                break
        assert lines and "run 1 of 30: 16x16 px, off, seed 0: " in lines[-1], lines
        rest = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in rest, rest
    kept = [json.loads((run / "run.json").read_text()) for run in (out / "runs").iterdir()]
    finished = len(kept)
    said = f"entropy-attn: interrupted; {finished} of 30 runs are kept in {out}; --resume continues from there"
    assert 1 <= finished < 30 and said in rest.splitlines()
    assert {run["seed"] for run in kept} == set(range(finished))


def test_out_of_memory_reports_the_kept_runs_and_suggests_options(tiny_model, tmp_path, monkeypatch, capsys):
    import torch

    from entropy_attn.profiling import call

    run_once, runs = call.run_once, []

    def short_of_memory(*given):
        runs.append(given)
        if len(runs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_once(*given)

    monkeypatch.setattr(call, "run_once", short_of_memory)
    command = [
        "profile",
        "--model",
        str(tiny_model),
        "--sizes",
        "16,32",
        "--scale",
        "off",
        "--prompt",
        "a",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--vae-tiling",
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("entropy-attn: error: out of device memory: try --offload model, then a smaller size; ")
    assert line.endswith(f"1 of 2 runs are kept in {tmp_path}; --resume continues from there")
