"""Time and peak memory of one generation."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import torch

from entropy_attn.bench.timing import resident_peak

MIB = 2**20
Peak = tuple[float | None, float | None]  # MiB: at the peak; what the generation added. None where it is not known


def generation_time(device: torch.device, run: Callable[[], Any]) -> float:
    """Seconds: processor time of all threads on a CPU, between two CUDA events on a GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record(torch.cuda.current_stream(device))
        run()
        end.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    before = time.process_time()
    run()
    return time.process_time() - before


def gpu_peak_mib(device: torch.device, run: Callable[[], Any]) -> Peak:
    """Peak of what torch has allocated on a GPU, with the weights; and what the generation added."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return peak / MIB, (peak - before) / MIB


def peak_in_new_process(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> Peak:
    """Peak resident set of a new process while it runs what `prepare(*arguments)` returns; and what that added.

    A process that has freed memory keeps some of it, and would hide what it takes again: hence a new one. On
    Linux; elsewhere it is not known.

    Args:
        prepare: a function at the top of a module; loads everything.
        arguments: what it takes; they are pickled.

    Raises:
        ValueError: the process ended without an answer, for example because memory ran out.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sending, torch.get_num_threads(), prepare, arguments))
    process.start()
    sending.close()
    try:
        found = receiving.recv()
    except EOFError:
        process.join()
        raise ValueError(
            f"memory: expected an answer of the process that measures it, got exit code {process.exitcode}: perhaps "
            "there is too little memory for this size"
        ) from None
    finally:
        if process.is_alive():
            process.join(timeout=10)
        if process.is_alive():
            process.kill()
    return (None, None) if found is None else (float(found[0]), float(found[1]))


def _measure(sending: Any, threads: int, prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    """In the new process."""
    torch.set_num_threads(threads)
    sending.send(resident_peak(prepare(*arguments)))
    sending.close()
