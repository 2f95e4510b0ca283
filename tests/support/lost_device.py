"""Ends a test process that has lost its device, so that the remaining tests run in another process.

After some errors, such as an illegal memory access, every later call of the process fails. pytest-xdist replaces a
process that ended; without it, the run stops.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

EXIT_CODE = 3


def lost() -> bool:
    """Whether a device was in use and no longer responds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # drivers raise different types
        return True
    return False


def leave_if_lost(report: Any) -> None:
    """Call this in a late `pytest_runtest_logreport` hook, when the report has been sent."""
    if not report.failed or not lost():
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        print(f"{report.nodeid} lost the device: this process ends", file=sys.__stderr__, flush=True)
        os._exit(EXIT_CODE)
    pytest.exit(f"{report.nodeid} lost the device: later tests would be meaningless", returncode=EXIT_CODE)
