"""Cases one after another in a child process, which is replaced when it dies, hangs or loses the device.

The child (worker.py) first lists its cases, then measures the requested ones, and announces each step. If no answer
comes, a row blames the announced step, and the rest of the case is tried again without it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import TICK, Child, exit_text
from benchmarks.gpu.rows import OtherRows, Row, Rows, good, same

START_SECONDS = 120.0  # limit for the imports of a child
STACK_SECONDS = 0.5  # in which a hanging child prints its stack
SAME = ("device", "torch", "triton", "commit")  # equal in all rows of a file


@dataclass
class Cases:
    """What one part measures with child processes; `serve` returns the outcome in words."""

    start: Callable[[], Child]
    path: Path
    limit: float  # seconds for one case
    until: float  # in time.monotonic()
    stopped: Callable[[], bool]
    progress: Callable[[str], None]
    written: Callable[[], None] = lambda: None
    bad: int = 0
    complete: bool = False
    _child: Child | None = None
    _hello: dict[str, Any] = field(default_factory=dict)

    def serve(self) -> str:
        try:
            why = self._open()
            if why:
                return why
            rows = Rows(self.path, self._hello["fields"])
            there = rows.read()
            _check_same(self.path, there, self._hello["about"])
            cases: dict[str, Row] = self._hello["cases"]
            todo = [key for key, identity in cases.items() if not any(same(row, identity) for row in there)]
            done = len(cases) - len(todo)
            known = f", {done} of them from before" if done else ""
            for key in todo:
                found = self._one(key, cases[key])
                if isinstance(found, str):
                    return f"{found}; {done} of {len(cases)} cases{known}"
                rows.write({**self._hello["about"], **row} for row in found)
                self.written()
                self.bad += sum(not good(row) for row in found)
                done += 1
                self.progress(f"{done} of {len(cases)} cases ({key})")
            self.complete = True
            return f"{done} cases{known}"
        except OtherRows as error:
            self.bad += 1
            return f"failed: {error}: use another --out"
        finally:
            self._close()

    def _open(self) -> str:
        """Start a child if there is none; returns why there is none, or ""."""
        if self._child is None:
            self._child = self.start()
            limit = min(self.until, time.monotonic() + START_SECONDS)
            kind, hello = self._wait(limit)
            if kind != "answer":
                self.bad += kind == "died"
                self._close()
                return _unfinished(kind) or f"failed: {hello} before the first case"
            self._hello = hello
        return ""

    def _one(self, key: str, identity: Row) -> list[Row] | str:
        """The rows of a case, or why there are none."""
        kept: list[Row] = []
        skip: list[Row] = []
        while True:
            why = self._open()
            if why:
                return why
            self._child.ask({"case": key, "skip": skip})
            at: list[Row] = []
            limit = time.monotonic() + self.limit
            while True:
                kind, answer = self._wait(min(limit, self.until))
                if kind == "answer" and "at" in answer:
                    at = answer["at"]
                    continue
                break
            if kind == "answer" and "lost" not in answer:
                return kept + [{**identity, **row} for row in answer["rows"]]
            if kind == "stopped" or (kind == "late" and limit > self.until):
                return _unfinished(kind)
            if kind == "late":
                self._child.signal(signal.SIGUSR1)  # faulthandler's, in worker.py
                self._child.pump(STACK_SECONDS)
            status = {"late": f"hung: no answer within {self.limit:g} s", "died": answer}.get(kind)
            status = status or f"lost the device: {answer['lost']}"
            self._close()
            at = answer.get("by", at) if kind == "answer" else at
            blamed = [one for one in at if one not in skip] or [{}]
            kept += [{**identity, **one, "status": status} for one in blamed]
            for one in blamed:
                self.progress(f"{key} {' '.join(map(str, one.values()))}: {status}")
            if blamed == [{}]:
                return kept
            skip += blamed

    def _wait(self, until: float) -> tuple[str, Any]:
        """The next event: an answer, the end of the child, a stop of the run, or the time limit."""
        child = self._child
        while True:
            if child.answers:
                return "answer", child.answers.popleft()
            if self.stopped():
                return "stopped", None
            if child.ended():
                child.drain()
                if not child.answers:
                    self._child = None
                    return "died", f"died: {exit_text(child.end())}"
            elif time.monotonic() >= until:
                return "late", None
            child.pump(min(TICK, max(0.0, until - time.monotonic())))

    def _close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def _unfinished(kind: str) -> str:
    return {"stopped": "stopped", "late": "unfinished: its share of the time was used up"}.get(kind, "")


def _check_same(path: Path, there: list[dict[str, str]], about: Row) -> None:
    for row in there:
        for name in SAME:
            if name in about and row.get(name) != str(about[name]):
                raise OtherRows(
                    f"{path.name}: expected rows of {name} {about[name]!r}, but it has some of {row.get(name)!r}"
                )
