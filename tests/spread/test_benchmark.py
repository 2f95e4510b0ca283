"""`python -m benchmarks.spread` on two processes that it starts itself."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest

from benchmarks.spread.__main__ import ARMS
from tests.support.torchrun import ROOT

pytestmark = [pytest.mark.spread, pytest.mark.slow]


def test_it_is_exact_and_counts_what_is_sent(tmp_path):
    path = tmp_path / "spread.csv"
    options = ["--device", "cpu", "--tokens", "64", "--text", "16", "--heads", "4", "--head-dim", "16"]
    options += ["--dtype", "float32", "--rounds", "1", "--csv", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.spread", *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with path.open(newline="") as file:
        rows = {(row["mode"], row["computed"]): row for row in csv.DictReader(file)}
    assert {arm for _, arm in rows} == set(ARMS)
    assert {mode for mode, _ in rows} == {"ulysses", "ulysses anything", "ring", "ring anything"}
    for row in rows.values():
        assert float(row["error"]) <= 1e-12 and float(row["ms"]) > 0
    sent = {key: int(row["bytes"]) for key, row in rows.items()}
    part = 40 * 4 * 16 * 4  # bytes of query, key, value or output: 40 tokens of a process, 4 heads, 16 channels
    assert sent["ulysses", "output"] == 4 * part / 2  # half of each comes from the other
    assert sent["ring", "output"] == 2 * part  # the other's key and value
    assert sent["ulysses", "entropy"] - sent["ulysses", "output"] == 40 * 4 * 2 * 4 / 2  # entropy and log-sum-exp
    assert sent["ring", "entropy"] == sent["ring", "output"]
    assert sent["ring", "entropy, map"] - sent["ring", "entropy"] == 8 * 4 * 16 * 4  # keys of the other's text
