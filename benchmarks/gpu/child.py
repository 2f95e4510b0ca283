"""A process in a group of its own: what it prints as it comes, what it answers, and an end to all of the group."""

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
ANSWERS = "ENTROPY_ATTN_ANSWERS"  # the environment's name for the number of the pipe that answers go to
TICK = 0.1  # seconds between two looks at whether it has ended
DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Child:
    """Lines of its output go to ``say``; lines of JSON that it writes to its pipe are queued in ``answers``."""

    def __init__(
        self, command: Sequence[str], say: Callable[[str], None], environment: Mapping[str, str] | None = None
    ):
        self.say, self.answers = say, collections.deque[Any]()
        reader, writer = os.pipe()
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        own = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", ANSWERS: str(writer), **(environment or {})}
        try:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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
        """Send it a line of JSON; one that has died meanwhile is seen to have ended later."""
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()

    def pump(self, seconds: float) -> bool:
        """Take what it has written, waiting for it up to ``seconds``; whether there was anything."""
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
        """Take what is there; not to the end of the pipes, which a process that left the group may hold open."""
        for _ in range(1000):
            if not self.pump(0):
                break

    def ended(self) -> bool:
        """Without taking notice of it, so that the group's number stays its own until :meth:`end`."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def interrupt(self, grace: float) -> None:
        """Ask it to come to an end, as Ctrl-C does, and give it some seconds for that."""
        self.signal(signal.SIGINT)
        until = time.monotonic() + grace
        while not self.ended() and time.monotonic() < until:
            self.pump(TICK)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def end(self) -> int:
        """Kill what is left of the group; the exit code, below 0 for a signal."""
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


def told(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _end_with_parent() -> None:
    """Between fork and exec: when the runner itself is killed, nothing of it is left on the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
