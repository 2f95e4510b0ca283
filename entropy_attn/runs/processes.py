"""The processes of torchrun or `accelerate launch`, which divide the runs of a folder between them.

Only who is finished and what has failed travels between them: the runs themselves are in the folder. That takes gloo on
the CPU, whatever the runs compute on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from entropy_attn.runs.rendezvous import new_store
from entropy_attn.validation import expected

WAIT = timedelta(days=30)  # for the slowest process; that one has ended is noticed at once
POLL = 0.02  # seconds; a wait inside gloo could not be interrupted

T = TypeVar("T")


class OtherProcessFailed(RuntimeError):
    """Another process has failed or ended; the message says what is known of it."""


@dataclass(frozen=True)
class Processes:
    """This process among those that make the same call.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        group: their process group; None if there is one process.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints what there is once."""
        return self.rank == 0

    def share(self, names: Sequence[str], cost: Callable[[str], Any] | None = None) -> list[str]:
        """The names that this process takes.

        They are dealt from the dearest on, in turns that go forth and back, so that shares cost about the same. A
        process alone takes all, in their order.

        Args:
            names: the same in every process.
            cost: anything that can be compared; None if all cost the same.
        """
        if self.count == 1:
            return list(names)
        dealt = list(names) if cost is None else sorted(names, key=cost, reverse=True)
        turns = (divmod(position, self.count) for position in range(len(dealt)))
        takers = [place if turn % 2 == 0 else self.count - 1 - place for turn, place in turns]
        return [name for name, taker in zip(dealt, takers, strict=True) if taker == self.rank]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; the others do not call it.

        Raises:
            OtherProcessFailed: `make` raised in the first process; there, its own exception.
        """
        if self.count == 1:
            return make()
        made, failure = None, None
        if self.is_first:
            try:
                made = make()
            except Exception as error:
                failure = error
        return self._meet(failure, made)[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block when every process has come to its end. An exception in one of them is one in all of them.

        A process whose block raises waits, too: what the others are at is finished first.

        Raises:
            OtherProcessFailed: the block raised in another process, or another process has ended.
        """
        if self.count == 1:
            yield
            return
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
            warnings.warn(f"process {self.rank} of {self.count}: {_line(error)}; waiting for the others", stacklevel=3)
        self._meet(failure)

    def _meet(self, failure: Exception | None, value: Any = None) -> list[Any]:
        """The values of all processes, by rank."""
        found: list[Any] = [None] * self.count
        try:
            arrived = dist.barrier(group=self.group, async_op=True)
            while not arrived.is_completed():
                time.sleep(POLL)
            arrived.wait()
            dist.all_gather_object(found, (failure and _line(failure), value), group=self.group)
        except RuntimeError as error:
            if failure is None:
                raise OtherProcessFailed(f"one of {self.count} processes has ended: {_line(error)}") from error
        if failure is not None:
            raise failure
        for rank, (line, _) in enumerate(found):
            if line is not None:
                raise OtherProcessFailed(f"process {rank} of {self.count}: {line}")
        return [value for _, value in found]


ALONE = Processes()


@contextlib.contextmanager
def launched() -> Iterator[Processes]:
    """The processes that torchrun or `accelerate launch` has started; `ALONE` if this one was started by itself.

    A process group that exists is used, and one that does not exist does not outlive the block.

    Raises:
        ValueError: the launcher says another number of processes than the process group, or not how to reach them.
    """
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    exists = dist.is_available() and dist.is_initialized()
    if exists and "WORLD_SIZE" in os.environ and announced != dist.get_world_size():
        raise ValueError(expected("WORLD_SIZE", f"the size of the process group, {dist.get_world_size()}", announced))
    if not exists and announced == 1:
        yield ALONE
        return
    if not exists:
        _make_group()
    group = None
    try:
        # A group of its own: the default one may be NCCL's, and has a shorter limit of time
        group = dist.new_group(backend="gloo", timeout=WAIT)
        yield Processes(dist.get_rank(), dist.get_world_size(), group)
    finally:
        if not exists:
            dist.destroy_process_group()
        elif group is not None:
            dist.destroy_process_group(group)


def _make_group() -> None:
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
    store, rank, count = _meeting_place(*map(os.environ.get, names))
    store = new_store(store, rank, count, dist.constants.default_pg_timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)


@functools.cache
def _meeting_place(*launcher: str | None) -> tuple[Any, int, int]:
    """(store, rank, count). The first process may serve the store: if it closed it after each use, another process that
    is already at the next one could reach the one that is about to close.
    """
    store, rank, count = next(dist.rendezvous("env://"))
    return store, rank, count


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
