"""A store that has the keys of processes that are gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from entropy_attn.runs.rendezvous import ASKS, new_store

LONGEST = timedelta(seconds=60)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_attempt_has_a_part_of_its_own(count):
    store = dist.HashStore()
    for rank in range(1, count):
        store.set(f"{ASKS}/{rank}", "killed before it was answered")
    for attempt in range(3):
        with ThreadPoolExecutor(count) as pool:
            parts = list(pool.map(lambda rank: new_store(store, rank, count, LONGEST), reversed(range(count))))
        assert not any(part.check(["attempt"]) for part in parts)
        parts[0].set("attempt", str(attempt))
        assert [part.get("attempt") for part in parts] == [str(attempt).encode()] * count


def test_a_process_that_does_not_come_is_an_error():
    store = dist.HashStore()
    store.set(f"{ASKS}/1", "killed")
    with pytest.raises(TimeoutError, match="1 of 3 processes have come"):
        new_store(store, 0, 3, timedelta(seconds=0.1))
