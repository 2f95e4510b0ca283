"""Some tests lose the device, hang or end their process: the others still run, and all outcomes are saved at once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.sanitize import verdict

pytest.importorskip("xdist")
ROOT = Path(__file__).parents[2]
CONFTEST = """
import sys, types
import pytest
from tests.support.lost_device import leave_if_lost

state = types.SimpleNamespace(lost=False)

def synchronize():
    if state.lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, state=state)  # a card without torch, which takes long to import

@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    leave_if_lost(report)
"""
TESTS = """
import os, time
import pytest
import torch

@pytest.mark.parametrize("number", range(6))
def test_before(number):
    assert not torch.state.lost

def test_fails():
    assert 1 == 2, "and says why"

def test_loses():
    torch.state.lost = True
    raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

def test_hangs():
    time.sleep(60)

def test_ends():
    os._exit(9)

@pytest.mark.skip(reason="not here")
def test_skips():
    pass

@pytest.mark.parametrize("number", range(6))
def test_after(number):
    assert not torch.state.lost
"""


def run(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, list[str]]]:
    """The output of pytest, and the outcomes of each test in their order."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        "-c",
        "/dev/null",
    ]
    command += ["-p", "benchmarks.gpu.outcomes", "--outcomes", str(folder / "checks.csv"), *options, str(folder)]
    done = subprocess.run(command, env={**clean, "PYTHONPATH": str(ROOT)}, cwd=folder, capture_output=True, text=True)
    found: dict[str, list[str]] = {}
    with (folder / "checks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["name"].partition("::")[2], []).append(f"{row['status']}: {row['detail']}")
    return done, found


def test_a_lost_device_affects_only_its_test(tmp_path):
    several = ("-n", "2", "--max-worker-restart", "10", "--outcomes-limit", "4.0", "--outcomes-part", "tests")
    done, found = run(tmp_path, *several)
    assert done.returncode == 1
    for number in range(6):
        assert found[f"test_before[{number}]"] == found[f"test_after[{number}]"] == ["passed: "]
    assert found["test_skips"] == ["skipped: Skipped: not here"]
    assert found["test_fails"] == ["failed: AssertionError: and says why (test_it.py:11)"]
    assert "Triton Error [CUDA]" in found["test_loses"][0] and "test_loses lost the device" in done.stderr
    assert "crashed while running" in found["test_loses"][1]  # its process, after the report
    assert "crashed while running" in found["test_hangs"][0] and "Timeout" in done.stderr
    assert "crashed while running" in found["test_ends"][0]
    assert done.stdout.index("FAILED test_it.py::test_fails") < done.stdout.index("= FAILURES =")  # at once

    # passed tests are not run again
    before = {name: len(rows) for name, rows in found.items()}
    done, found = run(tmp_path, "--outcomes-resume", "-k", "not ends and not hangs and not loses")
    again = {name for name, rows in found.items() if len(rows) > before[name]}
    assert again == {"test_fails"} and done.returncode == 1


def test_without_other_processes_the_run_stops(tmp_path):
    done, found = run(tmp_path, "-k", "loses or after")
    assert done.returncode == 3
    assert "test_loses lost the device: later tests would be meaningless" in done.stdout + done.stderr
    assert list(found) == ["test_loses"]


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (0, "forward: 0.1\n========= ERROR SUMMARY: 0 errors\n", ("ok", "0 errors")),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
         ("ok", "0 hazards displayed (0 errors, 0 warnings)")),
        (86, "========= Invalid read\n========= ERROR SUMMARY: 2 errors\n", ("failed: exit code 86", "2 errors")),
        (1, "WrongResult: out\n========= ERROR SUMMARY: 0 errors\n", ("failed: exit code 1", "0 errors")),
        (0, "========= Error: Device not supported\n",
         ("failed: exit code 0", "no summary: ========= Error: Device not supported")),
        (0, "", ("failed: exit code 0", "no summary: no output")),
    ],
)  # fmt: skip
def test_reports_of_compute_sanitizer(code, output, expected):
    """Only an explicit summary counts as clean: a tool that did not run also reports no errors."""
    assert verdict(code, output) == expected
