"""The store that a process group of torchrun's processes is made with.

torchrun's agent keeps one store as long as it lives, and starts killed processes again with the same address and port,
while `init_process_group` expects a new store at each attempt: it finds the keys of the processes that are gone, and
connects to their sockets (seen with torch 2.13; see issue 135712 of pytorch). So does a second group of the same
processes. `TORCHELASTIC_RESTART_COUNT` does not tell attempts apart, because the agent of each node has its own count
(same issue). Therefore the processes agree on a prefix that no other attempt has.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL = 0.02  # seconds
ASKS, ANSWERS, HERE = (f"entropy_attn/{name}" for name in ("asks", "answers", "here"))


def new_store(store: dist.Store, rank: int, count: int, longest: timedelta) -> dist.Store:
    """A part of `store` in which nothing is yet, the same part for the `count` processes that call this.

    Args:
        store: may have the keys of earlier calls, of processes that are gone, too.
        rank: number of this process.
        count: number of processes.
        longest: how long the first process waits for the others.

    Raises:
        TimeoutError: another process has not come.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        _answer(store, me, count, time.monotonic() + longest.total_seconds())
        return dist.PrefixStore(me, store)
    # Under a key of its own, so that an answer is never one that an earlier process got
    store.set(f"{ASKS}/{rank}", me)
    first = store.get(f"{ANSWERS}/{me}").decode()
    store.add(f"{HERE}/{first}", 1)
    return dist.PrefixStore(first, store)


def _answer(store: dist.Store, me: str, count: int, end: float) -> None:
    """Answer whoever asks until all others have come; nobody reads the answers to those that are gone."""
    answered: set[str] = set()
    while store.add(f"{HERE}/{me}", 0) < count - 1:
        for key in (f"{ASKS}/{rank}" for rank in range(1, count)):
            asking = store.get(key).decode() if store.check([key]) else None
            if asking is not None and asking not in answered:
                store.set(f"{ANSWERS}/{asking}", me)
                answered.add(asking)
        if time.monotonic() > end:
            raise TimeoutError(f"{store.add(f'{HERE}/{me}', 0) + 1} of {count} processes have come")
        time.sleep(POLL)
