"""The parts of `make gpu` on an emulated card: a row of every table, and kernels that are compiled ahead."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.rows import GOOD

ROOT = Path(__file__).parents[2]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_parts_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    given = ["--out", str(out), "--device", "emulated:sm_90", "--commit", "abc"]
    assert main([*given, "--only", "smoke", "forward"]) == 0
    checks = rows_of(out / "checks.csv")
    assert [row["status"] for row in checks if row["part"] == "smoke"] == ["ok"] * 3  # two calls, and the part
    (row,) = (row for row in rows_of(out / "forward.csv") if row["implementation"] == "triton+entropy")
    assert row["status"] == "ok" and float(row["p50_ms"]) > 0
    assert row["device"] == "emulated sm_90" and row["commit"] == "abc"
    assert sorted(path.name for path in out.iterdir()) == ["checks.csv", "forward.csv", "log.txt"]


@pytest.mark.parametrize("name", ["maps", "backward", "launch", "tuning", "schedules", "bench"])
def test_a_row_of_every_other_table(name):
    from benchmarks.gpu.device import opened
    from benchmarks.gpu.tables import TABLES

    with opened("emulated:sm_90") as device:
        table = TABLES[name](device, None)
        key = next(iter(table.cases()))
        at: list[list[dict]] = []
        rows = table.measure(key, [], at.append)
        identity = table.cases()[key]
    assert all(row["status"].startswith(GOOD) for row in rows) and any(row["status"] == "ok" for row in rows)
    assert all({*row, *table.about, *identity} <= set(table.fields) for row in rows)
    for row in rows:  # otherwise --resume would not find them
        assert {column: row.get(column, value) for column, value in identity.items()} == identity
    if name != "launch":
        assert at and all(set(one) <= set(table.fields) for names in at for one in names)


def test_launches_use_the_kernels_that_were_compiled_ahead(tmp_path):
    """A launch finds its kernel in Triton's cache, so both specialize in the same way."""
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    name = "forward-float32"

    def kernels() -> set[str]:
        return {
            path.parent.name for path in (tmp_path / "cache").rglob("*.cubin")
        }  # its name is a hash of everything that it specializes on

    warm = [sys.executable, "-m", "benchmarks.gpu.warm", "--target", "sm_90", "--only", f"smoke {name}"]
    subprocess.run(warm, check=True, env=environment, cwd=ROOT)
    ahead = kernels()
    code = (
        "import torch\nfrom benchmarks.gpu import calls\nfrom benchmarks.gpu.device import Device\n"
        "from tests.emulation.card import emulated\n"
        f"with emulated('sm_90'): calls.launch({name!r}, Device(torch.device('cpu'), 'sm_90'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)
    assert ahead and kernels() == ahead
