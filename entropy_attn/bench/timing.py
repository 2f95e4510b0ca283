"""Clocks: CUDA events with a cold cache, or perf_counter on a CPU. Implementations alternate, in both orders.

On a GPU, the level-2 cache is overwritten before each run, and the inputs rotate through more memory than it holds. The
GPU starts when the host has queued the whole run, so its time does not include that of the host, which is measured
separately.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from entropy_attn.bench.cases import Inputs
from entropy_attn.kernels.common.stopwatch import Stopwatch

ROUNDS = 4  # even, so that both orders are equally frequent
MAX_RUNS = 100  # of one implementation in one round
SLOW_MS = 200.0  # for longer runs the gate is enough of a warm-up
MAX_SETS = 8  # of inputs
FLUSH_BYTES = 256 * 2**20  # at least; more than twice the cache of any card so far
QUANTILES = (0.2, 0.5, 0.8)

Run = Callable[[Inputs], Any]


class Times(list[float]):
    """Milliseconds of runs; `host` has the time of the host for each run, if it is measured separately."""

    def __init__(self, times: Iterable[float] = (), host: Iterable[float] = ()):
        super().__init__(times)
        self.host = list(host)

    def add(self, others: Times) -> None:
        self += others
        self.host += others.host


class CudaClock:
    """Time on a CUDA or ROCm device."""

    warmups = 3
    round_ms = 40.0

    def __init__(self, device: torch.device):
        self.device = device
        self.cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        self._flush = torch.empty(max(FLUSH_BYTES, 2 * self.cache), dtype=torch.int8, device=device)

    def sets(self, one: Inputs) -> int:
        free = torch.cuda.mem_get_info(self.device)[0]
        wanted = math.ceil(2 * self.cache / one.bytes)
        return max(1, min(MAX_SETS, max(2, wanted), free // (8 * one.bytes)))

    def runs(self, run: Run, sets: Sequence[Inputs], count: int) -> Times:
        """Milliseconds of each of `count` runs."""
        rotating = itertools.cycle(sets)
        with torch.cuda.device(self.device):
            watch = Stopwatch(lambda: run(next(rotating)), before=self._flush.zero_)
            timings = [watch.time() for _ in range(count)]
        return Times((t.gpu for t in timings), (t.host for t in timings))

    def peak_mib(self, run: Run, one: Inputs) -> float:
        """MiB that a run allocates in addition."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run(one)
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def free_bytes(self) -> float:
        """No limit: a GPU raises an error when its memory is full."""
        return math.inf

    def tidy(self) -> None:
        torch.cuda.empty_cache()


class CpuClock:
    """Time on a CPU; memory is the growth of the peak resident set, on Linux."""

    warmups = 1
    round_ms = 60.0

    def sets(self, one: Inputs) -> int:
        return 2

    def runs(self, run: Run, sets: Sequence[Inputs], count: int) -> Times:
        times = Times()
        for i in range(count):
            start = time.perf_counter()
            run(sets[i % len(sets)])
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def peak_mib(self, run: Run, one: Inputs) -> float | None:
        found = resident_peak(lambda: run(one))
        return None if found is None else found[1]

    def free_bytes(self) -> float:
        """What a run can use: Linux kills a process that uses too much, without an error to catch."""
        found = Path("/proc/meminfo")
        lines = found.read_text().splitlines() if found.exists() else []
        kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
        return math.inf if kib is None else 512.0 * kib  # half of it

    def tidy(self) -> None:
        pass


Clock = CudaClock | CpuClock


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def interleaved(
    clock: Clock,
    runs: Mapping[str, Run],
    sets: Sequence[Inputs],
    on_error: Callable[[str, Exception], None],
    halfway: Callable[[], None] | None = None,
    around: Mapping[str, Callable[[], contextlib.AbstractContextManager[None]]] | None = None,
) -> dict[str, Times]:
    """Time implementations that alternate.

    Args:
        clock: measures the times.
        runs: {name: implementation}.
        sets: inputs to rotate through.
        on_error: called with (name, error) for an implementation that fails; it does not run again.
        halfway: called between two rounds, when the device is warm.
        around: {name: makes the context in which it runs}, entered outside of the clock; without a name, none.

    Returns:
        {name: milliseconds of all runs} of the implementations that did not fail.
    """
    times = {name: Times() for name in runs}
    counts: dict[str, int] = {}
    for turn in range(-1, ROUNDS):  # the first round is the warm-up, and determines how many runs fill a round
        if halfway and turn == ROUNDS // 2:
            halfway()
        for name in list(times) if turn % 2 == 0 else list(reversed(times)):
            try:
                with (around or {}).get(name, contextlib.nullcontext)():
                    if turn < 0:
                        once = clock.runs(runs[name], sets, 1)[-1]
                        if once < SLOW_MS:
                            once = clock.runs(runs[name], sets, clock.warmups)[-1]
                        counts[name] = max(1, min(MAX_RUNS, round(clock.round_ms / max(once, 1e-3))))
                    else:
                        times[name].add(clock.runs(runs[name], sets, counts[name]))
                continue
            except Exception as error:
                on_error(name, error)
                times.pop(name)
            clock.tidy()  # after the error has released its tensors
    return times


def quantiles(times: Sequence[float]) -> tuple[float, ...]:
    """p20, p50 and p80."""
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    return tuple(torch.tensor(times, dtype=torch.float64).quantile(levels).tolist())


def resident_peak(run: Callable[[], Any]) -> tuple[float, float] | None:
    """MiB of this process at its peak while it runs, and how much that is more than before; None except on Linux."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    with contextlib.suppress(OSError, AttributeError):  # memory that was freed before would hide what a run allocates
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        reset.write_text("5")  # resets the peak
    except OSError:
        return None
    before = _status_mib("VmRSS")
    run()
    peak = _status_mib("VmHWM")
    return peak, max(0.0, peak - before)


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
