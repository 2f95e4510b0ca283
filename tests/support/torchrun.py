"""A module in several processes that torchrun starts, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Finished(NamedTuple):
    code: int
    output: str  # what all processes wrote to one file, where lines run together: read results from files


def torchrun(module: str, processes: int, *arguments: str, restarts: int = 0, timeout: float = 480.0) -> Finished:
    """Run a module in so many gloo processes on the loopback; all begin anew, `restarts` times, if one fails."""
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
        *("--max-restarts", str(restarts), "-m", module, *arguments),
    ]
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
    return Finished(process.returncode, output)
