"""The benchmark of host time uses Triton's real launcher, and both launch paths reach the driver."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

build = pytest.importorskip("tests.emulation.build")

# In a separate process, because the stub driver stays loaded.
CODE = """
import json, torch
from benchmarks.kernels import host_time, stub_driver
from entropy_attn.kernels.common import plans

used = []
original = plans.Plan.launch
plans.Plan.launch = lambda self, varying: (used.append(plans.count()), original(self, varying))
with stub_driver.stub_driver(), torch.no_grad():
    name = "cross, 77 keys"
    call, _ = host_time.calls(64, torch.device("cpu"), "triton")[name]
    host_time.BURST = 5
    row = host_time.measure(name, call, None, 3, lambda: None, host_time.time.thread_time)
print(json.dumps([row, used, plans.count()]))
"""


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_both_paths_are_timed():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row, used, left = json.loads(done.stdout)
    assert row["call"] == "cross, 77 keys" and 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
    assert 0 < row["p20_of_triton"] <= row["p50_of_triton"] <= row["p80_of_triton"]
    assert len(used) == 5 * (2 + 3) - 1  # the launches by plan, without the first call
    assert set(used) == {1} and left == 0
