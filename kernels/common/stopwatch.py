"""How long work takes the GPU; and apart from that, how long the host takes to queue it.

Where the host is the slower one, the time between two events is the host's: the GPU has passed the first while the
work is still being queued. So the GPU is kept waiting before the first event until the second is queued too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

A_WHILE = 1_000_000  # cycles: about half a millisecond
FIRST_MS, LONGEST_MS = 0.25, 64.0  # of waiting: more of it as a run proves to need it


class Timing(NamedTuple):
    """Milliseconds of one run."""

    gpu: float
    host: float  # until it was queued


class Stopwatch:
    """Times one piece of work again and again, on the current device and stream."""

    def __init__(self, run: Callable[[], object], before: Callable[[], object] = lambda: None):
        """`before` each run, something that is not timed, such as emptying caches."""
        self.run, self.before, self.delay = run, before, FIRST_MS
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.cuda._sleep(A_WHILE)
        end.record()
        end.synchronize()
        self.cycles_per_ms = A_WHILE / start.elapsed_time(end)  # clocks differ, and on AMD what is counted

    def time(self) -> Timing:
        """Of one run; of more than one where the GPU had to wait for longer than before.

        A run that waits for the GPU by itself cannot be queued; then the host's part counts as the GPU's, as it does
        for whoever calls it.
        """
        while True:
            timing, in_time = self._once()
            if in_time or not self.delay:
                return timing
            self.delay = 2 * self.delay if self.delay < LONGEST_MS else 0.0

    def _once(self) -> tuple[Timing, bool]:
        """And whether the GPU began when all was queued."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.before()
        if self.delay:
            torch.cuda._sleep(round(self.delay * self.cycles_per_ms))
        start.record()
        begun = time.perf_counter()
        self.run()
        host = 1e3 * (time.perf_counter() - begun)
        end.record()
        in_time = not start.query()
        end.synchronize()
        return Timing(start.elapsed_time(end), host), in_time
