"""A pytest plugin: the outcome of each test is written to a CSV file at once, and failures are printed at once.

pytest -p benchmarks.gpu.outcomes --outcomes checks.csv --outcomes-part tests
"""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import read_rows
from benchmarks.gpu.rows import CHECKS, Rows

TEST_SECONDS = 120.0  # after which the process prints its stack and ends; pytest-xdist starts another one


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("outcomes")
    group.addoption("--outcomes", help="write each test's outcome to this CSV file")
    group.addoption("--outcomes-part", default="tests", help="the first column of its rows")
    group.addoption("--outcomes-resume", action="store_true", help="leave out tests that passed or were skipped before")
    group.addoption("--outcomes-limit", type=float, default=TEST_SECONDS, help="seconds for a test, with pytest-xdist")


def pytest_configure(config: Any) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Limit(config.getoption("--outcomes-limit")))
    elif config.getoption("--outcomes"):
        path, part = Path(config.getoption("--outcomes")), config.getoption("--outcomes-part")
        config.pluginmanager.register(_Outcomes(path, part, config.pluginmanager))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    if not config.getoption("--outcomes-resume") or not config.getoption("--outcomes"):
        return
    known = {row["name"]: row["status"] for row in read_rows(Path(config.getoption("--outcomes")))}
    done = [item for item in items if known.get(item.nodeid) in ("passed", "skipped")]
    config.hook.pytest_deselected(items=done)
    items[:] = [item for item in items if known.get(item.nodeid) not in ("passed", "skipped")]


class _Limit:
    """A time limit by faulthandler, which works even if the GIL is held, as in a call of the driver."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.errors = os.dup(2)  # while a test runs, pytest replaces the file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.errors)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()


class _Outcomes:
    def __init__(self, path: Path, part: str, plugins: Any):
        self.rows, self.part, self.plugins = Rows(path, CHECKS), part, plugins
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid
        self.seconds[name] = self.seconds.get(name, 0.0) + getattr(report, "duration", 0.0)
        if report.passed and report.when != "call":
            return
        detail = "" if report.passed else str(report.longrepr)
        if report.skipped and isinstance(report.longrepr, tuple):
            detail = report.longrepr[2]
        row = (self.part, name, report.outcome, round(self.seconds[name], 2), _short(report, detail))
        self.rows.write([dict(zip(CHECKS, row, strict=True))])
        if report.failed:
            self.plugins.getplugin("terminalreporter").write_line(f"\nFAILED {name}\n{detail}")


def _short(report: Any, detail: str) -> str:
    """The error and where it is raised, else the last line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return f"{crash.message.strip().splitlines()[0][:250]} ({Path(crash.path).name}:{crash.lineno})"
    return (detail.strip().splitlines() or [""])[-1][:300]
