"""The clocks of a GPU and of its host, on a simulated GPU: a queue in simulated time."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from entropy_attn.bench import timing
from entropy_attn.bench.timing import interleaved
from entropy_attn.kernels.common import stopwatch
from entropy_attn.kernels.forward import autotune

CPU = torch.device("cpu")
CLOCK = 1.7e6  # cycles per millisecond


class FakeGpu:
    """Times in milliseconds: `now` is the host's clock, `free` is when the queue will be empty."""

    cache = 3 * 2**10

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = self.free = 0.0
        card = self

        class Event:
            def __init__(self, enable_timing: bool):
                assert enable_timing

            def record(self) -> None:
                self.at = card.queue(0.0)

            def query(self) -> bool:
                return self.at <= card.now

            def synchronize(self) -> None:
                card.now = max(card.now, self.at)

            def elapsed_time(self, end: Event) -> float:
                assert self.query() and end.query()
                return end.at - self.at

        fakes = {
            "Event": Event,
            "device": lambda device: contextlib.nullcontext(),
            "synchronize": lambda device=None: self.wait(),
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=self.cache),
            "mem_get_info": lambda device: (2**30, 2**31),
            "_sleep": lambda cycles: self.queue(cycles / CLOCK),
            "empty_cache": lambda: None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: self.now / 1e3))

    def queue(self, gpu: float) -> float:
        """Add work of this duration to the queue; returns when it will be done."""
        self.free = max(self.free, self.now) + gpu
        return self.free

    def run(self, host: float, gpu: float) -> None:
        """The host is busy for a while, then launches."""
        self.now += host
        self.queue(gpu)

    def wait(self) -> None:
        self.now = max(self.now, self.free)


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(timing, "FLUSH_BYTES", 1)
    return FakeGpu(monkeypatch)


def test_the_clock_of_a_gpu(monkeypatch, card):
    """The cache is overwritten before each run, and the inputs take turns."""
    clock = timing.CudaClock(CPU)
    assert clock._flush.nbytes == 2 * card.cache
    small, large = (SimpleNamespace(bytes=n) for n in (100, 2**20))
    assert clock.sets(small) == timing.MAX_SETS and clock.sets(large) == 2
    log = []
    monkeypatch.setattr(clock, "_flush", SimpleNamespace(zero_=lambda: log.append("flush")))
    times = clock.runs(lambda inputs: (log.append(inputs), card.run(host=0.01, gpu=0.5)), ["first", "second"], 3)
    assert times == pytest.approx([0.5] * 3) and times.host == pytest.approx([0.01] * 3)
    assert log == ["flush", "first", "flush", "second", "flush", "first"]


def test_a_slow_host_does_not_add_to_the_gpus_time(monkeypatch, card):
    """Three launches, between which the host is busy for longer than the GPU."""
    clock = timing.CudaClock(CPU)
    runs = {
        "slow host": lambda _: [card.run(host=0.4, gpu=0.01) for _ in range(3)],
        "slow card": lambda _: card.run(host=0.005, gpu=0.06),
        "very slow host": lambda _: card.run(host=20.0, gpu=0.01),
    }
    times = interleaved(clock, runs, [None], lambda name, error: pytest.fail(str(error)))
    expected = {"slow host": (0.03, 1.2), "slow card": (0.06, 0.005), "very slow host": (0.01, 20.0)}
    for name, (gpu, host) in expected.items():
        assert len(times[name]) == len(times[name].host) >= 4
        assert list(times[name]) == pytest.approx([gpu] * len(times[name])), name
        assert times[name].host == pytest.approx([host] * len(times[name])), name
    assert min(times, key=lambda name: sum(times[name]) / len(times[name])) == "very slow host"


def test_a_call_that_waits_for_the_gpu_is_timed_with_the_host(card):
    """Such a call cannot be queued, whatever the GPU is made to wait for."""

    def waits(_):
        card.run(host=0.1, gpu=0.2)
        card.wait()
        card.run(host=0.3, gpu=0.1)

    times = timing.CudaClock(CPU).runs(waits, [None], 5)
    assert len(times) == 5 and times == pytest.approx([0.7] * 5)


def test_autotuning_counts_gpu_time_only(monkeypatch, card):
    monkeypatch.setattr(autotune, "FLUSH_BYTES", 16)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device: real(*shape, dtype=dtype))
    assert autotune._gpu_clock(lambda: card.run(host=0.7, gpu=0.02)) == pytest.approx(0.02)
