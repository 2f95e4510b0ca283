"""What `make gpu` measures, but for the clock: the cases, the gate and the rows, at small sizes on the CPU."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from entropy_attn.kernels.support import interpreting

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
CPU = torch.device("cpu")


@pytest.fixture
def load(monkeypatch):
    """A benchmark by its name, with a clock that needs no GPU."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str):
        for shared in ("gpu_harness", "backward"):
            sys.modules.pop(shared, None)
        module = importlib.import_module(name)
        harness = sys.modules["gpu_harness"]
        monkeypatch.setattr(harness, "milliseconds", lambda runs: dict.fromkeys(runs, (1.0, 2.0, 3.0)))
        monkeypatch.setattr(harness, "peak_mib", lambda run: 0.0)
        return module, harness

    yield load
    for name in ("gpu_harness", "forward", "backward", "maps"):
        sys.modules.pop(name, None)


def measured(harness, cases) -> list[dict]:
    return [row for case in cases for row in harness.measure(case, CPU)]


ours = pytest.mark.skipif(not interpreting(), reason="Triton's interpreter was not asked for: TRITON_INTERPRET=1")


@ours
def test_forward(load, monkeypatch):
    forward, harness = load("forward")
    monkeypatch.setattr(forward, "TOKENS", 64)
    rows = measured(harness, forward.cases(["float16"], [40], [33]))
    status = {row["implementation"]: row["status"] for row in rows}
    assert status.pop("sdpa-cudnn").startswith("refused")  # there is none on a CPU
    assert status.pop("sdpa-efficient").startswith("refused")
    assert set(status) == {"triton", "triton+entropy", "sdpa-flash", "materialised+entropy"}
    assert set(status.values()) == {"ok"}
    assert set(rows[0]) <= set(harness.FIELDS)
    assert rows[0]["tflops"] == f"{4 * 8 * 33**2 * 40 / 2.0 / 1e9:.1f}"


@ours
def test_backward(load, monkeypatch):
    backward, harness = load("backward")
    monkeypatch.setattr(backward, "TOKENS", 64)
    rows = measured(harness, backward.cases(["float16"], [16], [33]))
    status = {row["implementation"]: row["status"] for row in rows if not row["implementation"].startswith("sdpa")}
    assert status == dict.fromkeys(("triton", "triton+entropy", "materialised+entropy"), "ok")


@ours
def test_maps(load, monkeypatch):
    maps, harness = load("maps")
    monkeypatch.setattr(maps, "SHAPES", [(3, 40, 16)])
    rows = measured(harness, maps.cases(["float16"]))
    assert {row["status"] for row in rows} == {"ok"} and len(rows) == 6


def test_a_wrong_result_has_no_time(load, monkeypatch):
    forward, harness = load("forward")
    monkeypatch.setattr(forward, "RUNS", {
        "wrong": lambda q, k, v: {"out": 1.1 * forward.materialised(q, k, v)["out"]},
        "nan": lambda q, k, v: {"out": v * float("nan")},
        "right": forward.materialised,
    })  # fmt: skip
    wrong, nan, right = measured(harness, forward.cases(["float16"], [16], [20]))
    for row in (wrong, nan):
        assert row["status"].startswith("wrong: out: error") and "p50_ms" not in row
    assert right["status"] == "ok" and right["p50_ms"] == "2.0000"


def test_without_a_gpu_they_say_so(load, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    forward, _ = load("forward")
    monkeypatch.setattr(sys, "argv", ["forward.py"])
    assert forward.main() == 2
    assert "no GPU is visible to torch" in capsys.readouterr().err
