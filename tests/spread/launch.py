"""Starts a module of this folder in several processes, and reads what it wrote."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]


class Finished(NamedTuple):
    code: int
    output: str
    seconds: float


def torchrun(module: str, processes: int, *arguments: str, timeout: float = 480.0) -> Finished:
    """Run `tests.spread.MODULE` in so many gloo processes that find each other on the loopback."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
        *("-m", f"tests.spread.{module}", *arguments),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what torchrun has started too
        output, _ = process.communicate()
        raise AssertionError(f"{module} did not end within {timeout:.0f} s:\n{output}") from None
    return Finished(process.returncode, output, time.perf_counter() - start)


def results_of(module: str, processes: int, base: Path) -> dict[str, Any]:
    """{case: what it found}, as the module wrote it with `Report`; run once for all workers of this test run.

    base: `tmp_path_factory.getbasetemp()`.
    """
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = shared / f"{module}.json"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            done = torchrun(module, processes, str(path))
            assert done.code == 0, done.output
    return json.loads(path.read_text())
