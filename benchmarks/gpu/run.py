"""Run the parts one after another within a budget: parts that do not fit are skipped; a failure ends only its part."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import Cases
from benchmarks.gpu.child import TICK, Child, exit_text
from benchmarks.gpu.parts import Part
from benchmarks.gpu.rows import CHECKS, WHOLE, Rows

ARCHIVE = "archive/"  # files that begin so go into archive.zip
GRACE_SECONDS = 4.0  # for a command to end after Ctrl-C
HEARTBEAT_SECONDS = 20.0  # between two lines about the running part
RIGHT, FAILED, NO_GPU, UNFINISHED = 0, 1, 2, 3  # exit codes; 128 + N if signal N stopped it


class Log:
    """Lines on the screen and in log.txt."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
        try:
            print(line, flush=True)
        except (BrokenPipeError, UnicodeEncodeError):  # no reader, or another encoding; the file has the line
            pass


class Stop:
    """Set by Ctrl-C, SIGTERM and SIGHUP; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Stop:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._take) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.signal is not None

    def _take(self, number: int, _: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@dataclass
class Outcome:
    part: str
    status: str  # ok, failed, unfinished or skipped
    detail: str
    seconds: float = 0.0


class Runner:
    def __init__(self, out: Path, budget: float, device: str, commit: str, resume: bool):
        self.out, self.budget, self.device, self.commit, self.resume = out, budget, device, commit, resume
        self.began, self.target = time.monotonic(), ""
        self.say, self.stop = Log(out / "log.txt"), Stop()
        self._reported = self.began

    def run(self, parts: Sequence[Part], describe: Sequence[str]) -> int:
        with self.stop, tempfile.TemporaryDirectory(prefix="entropy_attn-") as work:
            self.work = Path(work)
            self._unpack()
            about = self._describe(describe)
            if about is None:
                return NO_GPU if not self.stop() else 128 + self.stop.signal
            self.target = about["target"]
            self.say(" ".join(f"{name} {value}," for name, value in about.items() if value).rstrip(","))
            outcomes = []
            for index, part in enumerate(parts):
                outcomes.append(
                    self._part(part, sum(each.share for each in parts[index:] if each is part or not each.missing()))
                )
                self._pack()
        return self._summary(outcomes)

    def progress(self, text: str) -> None:
        self._reported = time.monotonic()
        self.say(f"[{self._reported - self.began:5.0f} of {self.budget:.0f} s] {text}")

    def _part(self, part: Part, shares: float) -> Outcome:
        left = self.began + self.budget - time.monotonic()
        seconds = left * part.share / shares  # time that earlier parts did not use is divided among the rest
        absent = part.missing()
        if self.stop():
            outcome = Outcome(part.name, "skipped", "stopped before it")
        elif absent:
            outcome = Outcome(part.name, "skipped", f"this machine does not have {' and '.join(absent)}")
        elif seconds < part.least:
            short = f"it needs {part.least:g} s, but its share of the budget is {max(0.0, seconds):.0f} s"
            outcome = Outcome(part.name, "skipped", short)
        else:
            self.progress(f"{part.name}: {part.what}; up to {seconds:.0f} s")
            began = time.monotonic()
            try:
                outcome = (self._command if part.case_seconds is None else self._cases)(part, began + seconds)
            except OSError as error:  # for example a full disk, or a missing program
                outcome = Outcome(part.name, "failed", str(error))
            outcome.seconds = time.monotonic() - began
        self.progress(f"{part.name}: {outcome.status}: {outcome.detail}")
        row = dict(
            zip(CHECKS, (part.name, WHOLE, outcome.status, round(outcome.seconds, 1), outcome.detail), strict=True)
        )
        Rows(self.out / "checks.csv", CHECKS).write([row])
        return outcome

    def _command(self, part: Part, until: float) -> Outcome:
        child = self._start(part)
        late = False
        try:
            while not child.ended():
                late = time.monotonic() >= until
                if late or self.stop():
                    child.interrupt(GRACE_SECONDS)
                    break
                child.pump(TICK)
                if time.monotonic() - self._reported > HEARTBEAT_SECONDS:
                    self.progress(part.name)
        finally:
            code = child.end()
        if late or self.stop():
            return Outcome(part.name, "unfinished", "its share of the time was used up" if late else "stopped")
        return Outcome(part.name, "ok" if code == 0 else "failed", exit_text(code))

    def _cases(self, part: Part, until: float) -> Outcome:
        packed = part.file.startswith(ARCHIVE)
        path = (self.work if packed else self.out) / part.file.removeprefix(ARCHIVE)
        cases = Cases(
            start=lambda: self._start(part), path=path, limit=part.case_seconds, until=until, stopped=self.stop,
            progress=lambda text: self.progress(f"{part.name}: {text}"), written=self._pack if packed else lambda: None,
        )  # fmt: skip
        detail = cases.serve()
        if cases.bad:
            detail += f"; {cases.bad} bad rows in {part.file}"
        return Outcome(part.name, "failed" if cases.bad else "ok" if cases.complete else "unfinished", detail)

    def _start(self, part: Part) -> Child:
        return Child(self._filled((*part.command, *(part.resumed if self.resume else ()))), self.say, part.environment)

    def _filled(self, command: Sequence[str]) -> list[str]:
        names = {
            "python": sys.executable, "out": str(self.out), "work": str(self.work), "device": self.device,
            "commit": self.commit, "target": self.target, "jobs": str(max(1, _cores() - 2)),
        }  # fmt: skip
        for name, value in names.items():
            command = [word.replace(f"{{{name}}}", value) for word in command]
        return list(command)

    def _describe(self, command: Sequence[str]) -> dict[str, str] | None:
        """A description of the device, from another process, so that this one does not open the device."""
        child = Child(self._filled(command), self.say)
        until = time.monotonic() + 120.0
        while not child.ended() and not self.stop() and time.monotonic() < until:
            child.pump(TICK)
        hangs = not child.ended() and not self.stop()
        code = child.end()
        if hangs:
            self.say("the device does not answer; nothing is checked or measured")
        return child.answers.popleft() if code == 0 and child.answers else None

    def _pack(self) -> None:
        """Pack the work folder into archive.zip, which is replaced in one step."""
        found = sorted(path for path in self.work.rglob("*") if path.is_file())
        if not found:
            return
        made = self.out / ".archive.zip"
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in found:
                archive.write(path, path.relative_to(self.work))
        os.replace(made, self.out / "archive.zip")

    def _unpack(self) -> None:
        if (self.out / "archive.zip").exists():
            with zipfile.ZipFile(self.out / "archive.zip") as archive:
                archive.extractall(self.work)

    def _summary(self, outcomes: list[Outcome]) -> int:
        self.say("")
        for each in outcomes:
            self.say(f"  {each.part:<16}{each.status:<12}{each.seconds:5.0f} s  {each.detail}")
        kinds = {each.status for each in outcomes}
        files = ", ".join(sorted(path.name for path in self.out.iterdir()))
        self.say(f"{time.monotonic() - self.began:.0f} s of {self.budget:.0f}; in {self.out}: {files}")
        if "unfinished" in kinds or any("share of the budget" in each.detail for each in outcomes):
            self.say(f"to continue: --out {self.out} --resume")
        if self.stop():
            return 128 + self.stop.signal
        if "failed" in kinds:
            return FAILED
        budget = any(each.status == "skipped" and "budget" in each.detail for each in outcomes)
        return UNFINISHED if "unfinished" in kinds or budget else RIGHT


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
