"""Starts a module of this folder in several processes once, and reads what it wrote."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from tests.support.torchrun import torchrun


def results_of(module: str, processes: int, base: Path) -> dict[str, Any]:
    """{case: what it found}, as the module wrote it with `Report`; run once for all workers of this test run.

    base: `tmp_path_factory.getbasetemp()`.
    """
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = shared / f"{module}.json"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            done = torchrun(f"tests.spread.{module}", processes, str(path))
            assert done.code == 0, done.output
    return json.loads(path.read_text())
