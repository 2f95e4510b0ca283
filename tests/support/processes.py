"""Several processes as torchrun starts them, for tests: forked from a server that has imported torch and diffusers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

PRELOADED = ("tests.support.processes", "entropy_attn.profiling", "entropy_attn.evaluation.scale", "tests.runs.work")
LONGEST = 900.0  # seconds; on a machine with nothing else to do, they take a few


def launch(work: Callable[..., Any], *arguments: Any, count: int = 2, env: dict[str, str] | None = None) -> list[Any]:
    """What `work(rank, *arguments)` returned in each process, or ("NameOfError", "message"), or its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    started: list[tuple[Any, Any]] = []
    with _kept_port() as port:
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if sys.platform == "linux":
            shared["GLOO_SOCKET_IFNAME"] = "lo"
        try:
            for rank in range(count):
                receiving, sending = context.Pipe(duplex=False)
                environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared, **(env or {})}
                process = context.Process(target=_work, args=(work, rank, arguments, environment, sending))
                process.start()
                sending.close()
                started.append((process, receiving))
            return [_answer(process, receiving) for process, receiving in started]
        finally:
            for process, _ in started:
                process.kill()


def _work(work: Callable[..., Any], rank: int, arguments: tuple[Any, ...], env: dict[str, str], sending: Any) -> None:
    import torch

    os.environ.update(env)
    torch.set_num_threads(1)
    try:
        found = work(rank, *arguments)
    except Exception as error:
        found = (type(error).__name__, str(error))
    sending.send(found)


def _answer(process: Any, receiving: Any) -> Any:
    if not receiving.poll(LONGEST):
        return "no answer"
    try:
        return receiving.recv()
    except EOFError:
        process.join(LONGEST)
        return process.exitcode


@contextlib.contextmanager
def _kept_port() -> Iterator[int]:
    """A port that only the first process listens at: as long as this socket is bound, nobody else is given it."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or the process could not bind it too
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])
