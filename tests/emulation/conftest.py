"""These tests compile, so they need a process in which Triton was not imported as an interpreter."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")


def pytest_configure() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise pytest.UsageError("tests/emulation compiles the kernels: run it in a process without TRITON_INTERPRET")
