"""A test process whose device is lost ends, so that the tests which are left run in another one.

After some errors, such as an illegal access, every later call of the process fails. pytest-xdist starts another process
in the place of one that ended; without it nothing can be done but to stop.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

EXIT_CODE = 3


def lost() -> bool:
    """Whether a device was in use and does not answer any more."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # whatever kind of error a driver's is
        return True
    return False


def leave_if_lost(report: Any) -> None:
    """For ``pytest_runtest_logreport``, after the others': the report has been sent by then."""
    if not report.failed or not lost():
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        print(f"{report.nodeid} lost the device: this process ends", file=sys.__stderr__, flush=True)
        os._exit(EXIT_CODE)
    pytest.exit(f"{report.nodeid} lost the device: no later test could be right", returncode=EXIT_CODE)
