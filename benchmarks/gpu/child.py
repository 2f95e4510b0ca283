"""A process in a separate process group: its output line by line, its answers, and a way to end the whole group."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ANSWERS = "ENTROPY_ATTN_ANSWERS"  # environment variable with the file descriptor for answers
TICK = 0.1  # seconds between checks
DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Child:
    """A child process. Lines of its output go to `say`; lines of JSON from its pipe are queued in `answers`."""

    def __init__(
        self, command: Sequence[str], say: Callable[[str], None], environment: Mapping[str, str] | None = None
    ):
        self.say, self.answers = say, collections.deque[Any]()
        reader, writer = os.pipe()
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            ANSWERS: str(writer),
            **(environment or {}),
        }
        try:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=[writer], start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._answers = os.fdopen(reader, "rb")
        self._streams = selectors.DefaultSelector()
        self._partial: dict[int, bytes] = {}
        for stream, take in ((self._process.stdout, self._print), (self._answers, self._answer)):
            os.set_blocking(stream.fileno(), False)
            self._streams.register(stream, selectors.EVENT_READ, take)

    def ask(self, question: object) -> None:
        """Send a line of JSON; if the child has died, `ended` says so."""
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()

    def pump(self, seconds: float) -> bool:
        """Read what the child has written, and wait for up to `seconds`; returns whether there was anything."""
        if not self._streams.get_map():
            time.sleep(seconds)
            return False
        found = self._streams.select(seconds)
        for key, _ in found:
            data = b""
            with contextlib.suppress(BlockingIOError):
                data = os.read(key.fd, 65536)
                if not data:
                    self._streams.unregister(key.fileobj)
            lines = (self._partial.pop(key.fd, b"") + data).split(b"\n")
            rest = lines.pop()
            if rest and data:
                self._partial[key.fd] = rest
            elif rest:
                lines.append(rest)
            for line in lines:
                key.data(line)
        return bool(found)

    def drain(self) -> None:
        """Read what is available, but not to the end of the pipes: a process that left the group may keep them open."""
        for _ in range(1000):
            if not self.pump(0):
                break

    def ended(self) -> bool:
        """Whether it has ended. It is not reaped, so the id of the group is not reused before `end`."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def interrupt(self, grace: float) -> None:
        """Ask it to end, as Ctrl-C does, and wait for up to `grace` seconds."""
        self.signal(signal.SIGINT)
        until = time.monotonic() + grace
        while not self.ended() and time.monotonic() < until:
            self.pump(TICK)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def end(self) -> int:
        """Kill the rest of the group; returns the exit code, negative for a signal."""
        self.signal(signal.SIGKILL)
        while not self.ended():
            self.pump(TICK)
        self.drain()
        for line in (self._partial.pop(fd, b"") for fd in list(self._partial)):
            self.say(_text(line))
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._answers, self._streams):
            with contextlib.suppress(OSError):
                stream.close()
        return code

    def _print(self, line: bytes) -> None:
        self.say(_text(line))

    def _answer(self, line: bytes) -> None:
        if line.strip():
            self.answers.append(json.loads(line))


def exit_text(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _end_with_parent() -> None:
    """Between fork and exec: if the runner is killed, its children end, too, and leave the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
