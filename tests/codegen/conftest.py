"""These tests compile kernels, so they need a process in which Triton was imported without its interpreter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent

# The head dims by target that every change has to pass; `make codegen` also compiles the other rows of the tables.
USUAL = {"sm_80": (64,), "sm_90": (40, 64, 128)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-row", action="store_true", help="compile every row of the tables, for every target")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--every-row`, deselect all but the usual head dims of the usual targets."""
    here = [item for item in items if item.path.is_relative_to(FOLDER)]
    if config.getoption("--every-row") or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in here if not _usual(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _usual(item: pytest.Item) -> bool:
    given = item.callspec.params if hasattr(item, "callspec") else {}
    comparison = item.originalname == "test_no_loop_became_costlier"  # compares every target with the committed table
    usual = given.get("head_dim", 64) in USUAL.get(given.get("target", "sm_90"), ())
    return usual or comparison


def pytest_configure() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise pytest.UsageError("tests/codegen compiles the kernels: run it in a process without TRITON_INTERPRET")
