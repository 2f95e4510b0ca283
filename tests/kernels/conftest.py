"""These tests run the kernels on the GPU that is here, or in Triton's interpreter.

Triton chooses its interpreter when it is imported: where TRITON_INTERPRET=1 is set (`make test`), or where no GPU is.
"""

from __future__ import annotations

import math
import os
import sys

import pytest
import torch

from tests.lost_device import leave_if_lost

if "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """What the kernel does not write stays NaN."""
    from entropy_attn.kernels import arguments, launch, launch_backward, launch_maps

    def allocate(shape, dtype, device):
        return torch.full(shape, math.nan, dtype=dtype, device=device)

    for module in (arguments, launch, launch_backward, launch_maps):
        monkeypatch.setattr(module, "allocate", allocate)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    leave_if_lost(report)
