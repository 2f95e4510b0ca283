"""These tests run the kernels on a GPU, in Triton's interpreter, or on an emulated card.

    pytest tests/kernels --on interpreter    (or: gpu, sm_80, sm_89, sm_90, sm_120)

Triton chooses its interpreter when it is imported. Without `--on`, the interpreter is used if TRITON_INTERPRET=1 is set
(`make test`) or if there is no GPU.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator

import pytest
import torch

from tests.support.lost_device import leave_if_lost

EMULATED = ("sm_80", "sm_89", "sm_90", "sm_120")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on", choices=("interpreter", "gpu", *EMULATED), help="where tests/kernels run the kernels")


def pytest_configure(config: pytest.Config) -> None:
    on = config.getoption("--on", None)
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if on == "interpreter" and not interpreted:
        if "triton" in sys.modules:
            raise pytest.UsageError("--on interpreter: Triton is imported already; set TRITON_INTERPRET=1")
        os.environ["TRITON_INTERPRET"] = "1"
    elif on is None and not interpreted and not torch.cuda.is_available():
        if "triton" in sys.modules:  # imported by the conftest of another folder
            raise pytest.UsageError("tests/kernels without a GPU: Triton is imported already; set TRITON_INTERPRET=1")
        os.environ["TRITON_INTERPRET"] = "1"
    elif on not in (None, "interpreter") and interpreted:
        raise pytest.UsageError(f"--on {on}: unset TRITON_INTERPRET, with which Triton compiles nothing")
    elif on == "gpu" and not torch.cuda.is_available():
        raise pytest.UsageError("--on gpu: torch sees no GPU here")
    elif on in EMULATED:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # one card at a time


@pytest.fixture(autouse=True)
def poisoned_outputs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that the kernel does not write stays NaN, also on an emulated card."""
    on = request.config.getoption("--on", None)
    if on in EMULATED:
        from entropy_attn.kernels.forward import autotune
        from tests.emulation.card import emulated

        # time is not emulated: the autotuner takes any candidate that runs
        monkeypatch.setattr(autotune, "_default_timer", lambda: lambda run: (run(), 1.0)[1])
        with emulated(on) as card:
            yield
        print(card.summary())  # pytest shows this with a failed test
        return

    from entropy_attn.kernels.backward import launch as launch_backward
    from entropy_attn.kernels.common import arguments
    from entropy_attn.kernels.forward import launch
    from entropy_attn.kernels.maps import launch as launch_maps

    def allocate(shape, dtype, device):
        return torch.full(shape, math.nan, dtype=dtype, device=device)

    for module in (arguments, launch, launch_backward, launch_maps):
        monkeypatch.setattr(module, "allocate", allocate)
    yield


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    leave_if_lost(report)
