"""Tests that need a GPU: long sequences, large tensors, streams, timing. `make gpu` runs these and tests/kernels."""

from __future__ import annotations

import pytest
import torch

from tests.support.lost_device import leave_if_lost


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="no GPU is visible to torch"))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    leave_if_lost(report)
