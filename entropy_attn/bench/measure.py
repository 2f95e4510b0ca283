"""From cases to rows: gate, memory, clock. Out of memory, refused and wrong are results, too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch

from entropy_attn.bench.cases import Case, Inputs, dtype_name, run
from entropy_attn.bench.gate import Gate, WrongResult
from entropy_attn.bench.implementations.contract import Implementation
from entropy_attn.bench.implementations.registry import contenders
from entropy_attn.bench.machine import Sensors
from entropy_attn.bench.timing import Clock, clock_of, interleaved, quantiles

Row = dict[str, Any]

MACHINE = ("device", "driver", "torch", "triton", "commit", "date")
FIELDS = (
    *MACHINE, "model", "size", "kind", "layers", "task", "pass", "dtype",
    "batch", "heads", "seqlen", "seqlen_k", "head_dim", "implementation", "status", "max_error", "p20_ms", "p50_ms",
    "p80_ms", "host_ms", "peak_mib", "tflops", "sm_mhz", "power_w",
)  # fmt: skip
CASE = ("model", "size", "kind", "task", "pass", "dtype", "batch", "heads", "seqlen", "seqlen_k", "head_dim")
OUT_OF_MEMORY = "out of memory"
LOST = "lost the device"  # the status of a row begins with it
DEVICE_ERRORS = getattr(torch, "AcceleratorError", ())
DEVICE_WORDS = (
    "Triton Error [",
    "CUDA error",
    "HIP error",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
)  # in messages of RuntimeErrors


class DeviceLost(RuntimeError):
    """After some errors, such as an illegal access, every later call of the process fails.

    Attributes:
        rows: the rows of the case; one of them says that its implementation lost the device.
        by: which implementation lost the device, if it is known.
    """

    def __init__(self, message: str, rows: Sequence[Row] = (), by: Sequence[Row] = ()):
        super().__init__(message)
        self.rows, self.by = list(rows), list(by)


def measure(
    case: Case,
    device: torch.device,
    clock: Clock,
    names: Iterable[str] | None = None,
    sensors: Sensors | None = None,
    skip: Collection[str] = (),
    at_risk: Callable[[list[str]], None] = lambda names: None,
) -> list[Row]:
    """Measure one case with each implementation that has its task.

    Args:
        case: what to measure.
        device: where the tensors are.
        clock: measures time and memory.
        names: implementations; None is all.
        sensors: reads clock and power during the measurement.
        skip: row names of implementations to leave out.
        at_risk: called before implementations run, with the row names to blame if the process hangs or dies.

    Returns:
        A row for each implementation.

    Raises:
        DeviceLost: with the rows.
    """
    rows: dict[str, Row] = {}
    about, good = identity(case), dict[str, Callable[[Inputs], Any]]()
    chosen = [one for one in contenders(case.ask, names) if one.row_name(case.ask) not in skip]
    if not chosen:
        return []
    try:
        inputs = case.inputs(device)
        gate = Gate(case, inputs)
    except Exception as error:
        if failure(error) != OUT_OF_MEMORY:
            raise
        clock.tidy()
        status = f"{OUT_OF_MEMORY}: the inputs, or the gate's float64"
        return [about | {"implementation": i.row_name(case.ask), "status": status} for i in chosen]
    for implementation in chosen:
        name = implementation.row_name(case.ask)
        rows[name] = about | {"implementation": name}
        call = functools.partial(run, implementation, case.ask)
        at_risk([name])
        try:
            status = _refusal(implementation, case, inputs, clock) or "ok"
            if status == "ok":
                with implementation.around():
                    rows[name]["max_error"] = round(gate.check(call(inputs), implementation.slack), 3)
                    rows[name]["peak_mib"] = digits(clock.peak_mib(call, inputs))
                good[name] = call
        except Exception as error:
            status = _failure(error, name, rows)
        if status != "ok":  # after the error has released its tensors
            clock.tidy()
        rows[name]["status"] = status
    del gate

    def failed(name: str, error: Exception) -> None:
        rows[name]["status"] = _failure(error, name, rows)

    at_risk(list(good))
    try:
        sets = [inputs, *(case.inputs(device) for _ in range(clock.sets(inputs) - 1))]
    except torch.OutOfMemoryError:
        sets = [inputs]
    around = {one.row_name(case.ask): one.around for one in chosen}
    for name, times in interleaved(clock, good, sets, failed, sensors.ask if sensors else None, around).items():
        p20, p50, p80 = quantiles(times)
        rows[name] |= {"p20_ms": digits(p20), "p50_ms": digits(p50), "p80_ms": digits(p80)}
        if times.host:
            rows[name]["host_ms"] = digits(quantiles(times.host)[1])
        rows[name]["tflops"] = digits(case.flops / p50 / 1e9)
    sensed = sensors.answer() if sensors else {}
    return [row | (sensed if "p50_ms" in row else {}) for row in rows.values()]


def measure_all(
    cases: Iterable[Case],
    device: torch.device,
    names: Iterable[str] | None = None,
    on_case: Callable[[Case], None] | None = None,
) -> Iterator[tuple[Case, list[Row]]]:
    """(case, rows) for each case, as soon as it is measured.

    Raises:
        DeviceLost: after the rows of the case that lost the device; no further case can be measured.
    """
    clock, sensors = clock_of(device), Sensors(device)
    names = None if names is None else tuple(names)
    for case in cases:
        if on_case:
            on_case(case)
        try:
            rows = measure(case, device, clock, names, sensors)
        except DeviceLost as lost:
            yield case, lost.rows
            raise
        yield case, rows
        clock.tidy()


def failure(error: Exception) -> str:
    """The status of a row whose implementation failed.

    Raises:
        DeviceLost: the device does not work any more, so every later row would be wrong.
    """
    message = (str(error).strip().splitlines() or [""])[0][:100]
    kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
    of_device = isinstance(error, DEVICE_ERRORS) or any(word in str(error) for word in DEVICE_WORDS)
    if (of_device or torch.cuda.is_initialized()) and not _device_answers():
        raise DeviceLost(f"{kind}{message}") from error
    if isinstance(error, WrongResult):
        return f"wrong: {error}"
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    if no_memory or (of_device and "out of memory" in str(error)):
        return OUT_OF_MEMORY
    return f"refused: {kind}{message}"


def _failure(error: Exception, name: str, rows: dict[str, Row]) -> str:
    """The same; if the device is lost, set the status of all rows of the case."""
    try:
        return failure(error)
    except DeviceLost as lost:
        for other, row in rows.items():
            if other == name:
                row["status"] = f"{LOST}: {lost}"
            elif row.get("status", "ok") == "ok":
                row["status"] = f"not measured: {name} {LOST}"
        raise DeviceLost(f"{name}: {lost}", list(rows.values()), [{"implementation": name}]) from error


def _device_answers() -> bool:
    try:
        torch.cuda.synchronize()
        return float(torch.ones(1, device="cuda").sum()) == 1.0
    except torch.OutOfMemoryError:
        return True
    except (RuntimeError, AssertionError):  # AssertionError: torch without CUDA
        return False


def _refusal(implementation: Implementation, case: Case, inputs: Inputs, clock: Clock) -> str | None:
    reasons = implementation.unsupported_reasons(inputs.query, inputs.key, inputs.value, case.ask)
    if reasons:
        return "refused: " + "; ".join(reasons)
    w = case.workload
    needed = 4.0 * implementation.matrices * w.batch * w.heads * w.seqlen * w.seqlen_k * (1 + case.ask.gradient)
    return f"{OUT_OF_MEMORY}: it would hold {needed / 2**30:.1f} GiB" if needed > clock.free_bytes() else None


def identity(case: Case) -> Row:
    """What all rows of a case have in common."""
    w = case.workload
    return {
        "model": w.model, "size": w.size, "kind": w.kind, "layers": w.layers, "task": case.ask.task,
        "pass": "both" if case.ask.gradient else "forward", "dtype": dtype_name(case.dtype), "batch": w.batch,
        "heads": w.heads, "seqlen": w.seqlen, "seqlen_k": w.seqlen_k, "head_dim": w.head_dim,
    }  # fmt: skip


def digits(value: float | None, count: int = 4) -> float | None:
    """A value rounded to `count` significant digits."""
    return None if value is None else float(f"{value:.{count}g}")
