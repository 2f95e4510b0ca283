"""These tests compile kernels, so they need a process in which Triton was imported without its interpreter."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

pytest.importorskip("triton")


SEED = "ENTROPY_ATTN_FUZZ_SEED"


def pytest_configure() -> None:
    os.environ.setdefault(SEED, str(random.SystemRandom().randrange(10**9)))  # shared by the processes of a run
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise pytest.UsageError("tests/emulation compiles the kernels: run it in a process without TRITON_INTERPRET")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"random calls of tests/emulation: {SEED}={os.environ[SEED]}")
