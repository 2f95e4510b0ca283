"""The host's work in a denoising step is counted, and does not grow unseen; what bounds cross-attention adds up."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

build = pytest.importorskip("tests.emulation.build")

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "step.csv"
ALLOWED = 1.02  # times the committed calls of Python functions
ARMS = ("diffusers", "LogN, torch's attention", "LogN, kernels")

# In a separate process, because the stub driver stays loaded.
CODE = f"""
import json, torch
from benchmarks.routing import step

found = []
with torch.no_grad(), step.stub_driver(), step.without_work():
    for name in {ARMS}:
        with step.arms()[name]() as run:
            found.append(step.measure(name, run, 3))
print(json.dumps(found))
"""


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_the_hosts_work_of_a_step_does_not_grow():
    pytest.importorskip("diffusers")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {row["step"]: row for row in json.loads(done.stdout)}
    assert all(row["attention_calls"] == 32 and 0 < row["p20_us"] <= row["p80_us"] for row in found.values())
    plain, routed, by_kernels = (found[name]["python_calls"] for name in ARMS)
    assert plain < routed < by_kernels
    with COMMITTED.open(newline="") as file:
        committed = {row["step"]: row for row in csv.DictReader(file)}  # of the last commit
    last = committed["diffusers"]
    if (last["torch"], last["triton"]) != (version("torch"), version("triton")) or plain != int(last["python_calls"]):
        pytest.skip("the table was made with other versions")
    for name in ARMS:
        assert found[name]["python_calls"] <= ALLOWED * int(committed[name]["python_calls"])


def test_what_bounds_cross_attention():
    from benchmarks.kernels import cross  # not at collection: it imports the compiler

    # 128 scores of 40 columns: 2 * 2 * 40 bytes a row of 77 scores; 4 * 48 operations a score by tensor cores
    clk = cross.clocks("sm_90", 40, 48, executed=25.6, exp=1.0, map_bytes=0)
    assert clk["tensor_clk"] == pytest.approx(4 * 48 / 4096) and clk["issue_clk"] == pytest.approx(0.2)
    assert clk["memory_clk"] == pytest.approx(160 / 77 / (3352 / (132 * 1.83))) and clk["exp_clk"] == 1 / 16
    # 64 programs of 8 heads on 132 multiprocessors: 2 parts in one round of 4 heads, 3 parts in two rounds of 3
    assert cross.steps("sm_90", 4, 8, 64) == 4 and cross.steps("sm_90", 3, 8, 64) == 6
    plain, with_map = cross.rows_of("sm_90", 2, 8, 4096, 64)
    assert (with_map["parts"], with_map["steps"], with_map["parts_filled"], with_map["steps_filled"]) == (2, 4, 3, 6)
    assert plain["steps"] == 4 and float(with_map["instructions"]) < float(plain["instructions"])
