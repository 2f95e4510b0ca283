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
from entropy_attn.profiling import store

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
    table = pd.read_csv(interrupted / "entropy.csv")
    assert list(dict.fromkeys(table["size"] + table["policy"])) == ["16x16off", "16x16logn"]
    assert len(list((interrupted / "pictures").iterdir())) == 2
    with (interrupted / "entropy.csv").open("a") as file:  # as if the process had been killed while it wrote
        file.write("32x32,32,32,off,0,down_bl")
    runs = []
    resumed = ea.profile(tiny_pipe, **PLAN, out=interrupted, resume=True, on_run=lambda *run: runs.append(run))
    assert [seconds is None for _, seconds, _, _ in runs] == [True, True, False, False]
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
    before = (interrupted / "entropy.csv").read_bytes()
    with pytest.raises(ValueError, match=message):
        ea.profile(tiny_pipe, **{**PLAN, **change}, out=interrupted, resume=True)
    assert (interrupted / "entropy.csv").read_bytes() == before


def test_a_folder_without_a_plan_and_one_with_an_interrupted_profile(tiny_pipe, interrupted, tmp_path_factory):
    with pytest.raises(ValueError, match=r"resume: expected a profile in .*, but it has no plan\.json"):
        ea.profile(tiny_pipe, **PLAN, out=tmp_path_factory.mktemp("empty"), resume=True)
    with pytest.raises(ValueError, match=r"interrupted profile, with 2 of 4 runs finished: resume it"):
        ea.profile(tiny_pipe, **PLAN, out=interrupted)
    (interrupted / "heads.csv").unlink()
    with pytest.raises(ValueError, match=r"heads\.csv' is missing, or shorter"):
        ea.profile(tiny_pipe, **PLAN, out=interrupted, resume=True)
    (interrupted / store.LEDGER).write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json' is not the plan of a profile"):
        ea.profile(tiny_pipe, **PLAN, out=interrupted, resume=True)


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
    finished = len(json.loads((out / store.LEDGER).read_text())["finished"])
    said = f"entropy-attn: interrupted; {finished} of 30 runs are kept in {out}; --resume continues from there"
    assert 1 <= finished < 30 and said in rest.splitlines()
    table = pd.read_csv(out / "entropy.csv")
    assert set(table["seed"]) == set(range(finished))


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
