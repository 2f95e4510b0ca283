"""The cases of each part: their names, what identifies their rows, and how they are measured. worker.py serves them.

On an emulated card each table has one small case, which shows that the table works; its times mean nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu import calls, sanitize
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import CHECKS
from benchmarks.kernels import backward, forward, host_time, maps, tune
from entropy_attn.bench import measure as measuring
from entropy_attn.bench.cases import Case, cases
from entropy_attn.bench.implementations.contract import Ask
from entropy_attn.bench.implementations.registry import contenders
from entropy_attn.bench.machine import Sensors, version
from entropy_attn.bench.presets import preset
from entropy_attn.bench.workloads import Workload, sweep
from entropy_attn.kernels.forward.configs import SCHEDULES
from entropy_attn.kernels.forward.measured import KEY

Row = dict[str, Any]
At = Callable[[list[Row]], None]  # called with what is tried next: columns of the row if it fails
Question = tuple[Case, tuple[str, ...] | None]

DTYPES = ["bfloat16"]
HEAD_DIMS, LENGTHS = [64, 128, 40, 80, 160], [4096, 1024, 16_384, 256]  # most important first
BACKWARD_HEAD_DIMS = [64, 128, 40, 160]
SMALL = Workload("sweep", "", "joint", 1, 2, 40, 40, 64, map_keys=(8, 40))
LONGER = Workload("sweep", "", "joint", 1, 1, 64, 256, 64)  # for the schedules, which need more keys
SMALL_NAMES = ("triton", "sdpa", "materialised")


class Measured:
    """Rows of `entropy_attn.bench`, one for each implementation."""

    fields = measuring.FIELDS

    def __init__(self, questions: Callable[[], Iterable[Question]], tasks: tuple[str, ...], passes: tuple[str, ...],
                 device: Device, commit: str | None):  # fmt: skip
        if device.emulated:
            small = list(cases([SMALL], tasks[:1], passes[:1], [torch.float16]))
            questions = lambda: [(case, SMALL_NAMES) for case in small]  # noqa: E731
        self.questions = {case.label: (case, names) for case, names in questions() if contenders(case.ask, names)}
        self.device, self.about = device, device.about(commit)
        self.clock, self.sensors = device.clock(), Sensors(device.where)

    def cases(self) -> dict[str, Row]:
        return {key: measuring.identity(case) for key, (case, _) in self.questions.items()}

    def measure(self, key: str, skip: list[Row], at: At) -> list[Row]:
        case, names = self.questions[key]
        try:
            return measuring.measure(
                case, self.device.where, self.clock, names, self.sensors,
                skip=[row["implementation"] for row in skip],
                at_risk=lambda names: at([{"implementation": name} for name in names]),
            )  # fmt: skip
        finally:
            self.clock.tidy()


def bench_questions() -> Iterable[Question]:
    chosen = preset("quick", "cuda")
    for case in cases(chosen.workloads(), chosen.tasks, chosen.passes, [torch.bfloat16]):
        yield case, chosen.implementations


class Smoke:
    fields = CHECKS

    def __init__(self, device: Device, commit: str | None):
        self.device, self.about = device, {"part": "smoke"}
        self.names = calls.SMALL if device.emulated else tuple(calls.CALLS)

    def cases(self) -> dict[str, Row]:
        return {name: {"part": "smoke", "name": name} for name in self.names}

    def measure(self, key: str, skip: list[Row], at: At) -> list[Row]:
        began = time.monotonic()
        error = calls.run(key, self.device)
        detail = f"{error:.2f} of the allowed error"
        return [{"status": "ok", "seconds": round(time.monotonic() - began, 2), "detail": detail}]


class Launch:
    """Host time of each call, in bursts; see benchmarks/kernels/host_time.py."""

    fields = (
        "call", "p20_us", "p50_us", "p80_us", "triton_us", "p20_of_triton", "p50_of_triton", "p80_of_triton",
        "torch_us", "ratio", "driver_part", *measuring.MACHINE, "status",
    )  # fmt: skip

    def __init__(self, device: Device, commit: str | None):
        self.device = device
        self.about = {"driver_part": "left out" if device.emulated else "included", **device.about(commit)}
        tokens, self.rounds = (16, 2) if device.emulated else (256, 40)
        self.calls = host_time.calls(tokens, device.where, "triton")
        if device.emulated:
            self.calls = dict(list(self.calls.items())[:1])
            host_time.BURST = 1

    def cases(self) -> dict[str, Row]:
        return {name: {"call": name} for name in self.calls}

    def measure(self, key: str, skip: list[Row], at: At) -> list[Row]:
        ours, torchs = self.calls[key]
        with torch.no_grad():
            row = host_time.measure(key, ours, torchs, self.rounds, self.device.wait, time.perf_counter)
        return [row | {"status": "ok"}]


class Tuning:
    """Candidates of the forward kernel, a case for each schedule; see benchmarks/kernels/tune.py."""

    fields = tune.FIELDS

    def __init__(self, schedules: tuple[str, ...], device: Device, commit: str | None):
        about = device.about(commit)
        self.device, self.dtype = device, torch.bfloat16
        self.about = {name: about[name] for name in ("device", "triton", "torch", "commit", "date")}
        shapes = [LONGER] if device.emulated else [*sweep(HEAD_DIMS, LENGTHS), *tune.cross(HEAD_DIMS)]
        self.known: dict[str, tuple[Case, list[Any], Row]] = {}
        for workload in shapes:
            for task in ("plain",) if device.emulated else ("plain", "entropy"):
                for schedule in schedules:
                    case = Case(workload, Ask(task), self.dtype)
                    configs = tune.candidates(device.target, workload, self.dtype, [schedule])
                    shape = (device.target, workload.head_dim, workload.seqlen, workload.seqlen_k, task == "entropy")
                    about_case = dict(zip(KEY, shape, strict=True)) | {"schedule": schedule}
                    configs = configs[:2] if device.emulated else configs
                    if configs:
                        self.known[f"{case.label}, {schedule}"] = (case, configs, about_case)
        self.clock = device.clock()

    def cases(self) -> dict[str, Row]:
        return {key: about for key, (_, _, about) in self.known.items()}

    def measure(self, key: str, skip: list[Row], at: At) -> list[Row]:
        case, configs, _ = self.known[key]
        left = [config for config in configs if vars(config) not in skip]
        if not left:
            return []
        try:
            return tune.tune(case, left, self.device.target, self.device.where, self.clock,
                             at_risk=lambda configs: at([vars(config) for config in configs]))  # fmt: skip
        finally:
            self.clock.tidy()


class Guidance:
    """A case for each image size; see benchmarks/guidance/cost.py."""

    def __init__(self, device: Device, commit: str | None):
        from benchmarks.guidance import cost  # which needs diffusers

        self.cost, self.device = cost, device
        self.about = {"diffusers": version("diffusers"), **device.about(commit)}
        self.fields = (*cost.FIELDS, *self.about, "status")
        small = ["--sizes", "64", "--layers-per-block", "1", "--width-divisor", "4", "--repeats", "1"]
        self.args = cost.arguments(small if device.emulated else [])

    def cases(self) -> dict[str, Row]:
        return {f"{size} px": {"size": size} for size in self.args.sizes}

    def measure(self, key: str, skip: list[Row], at: At) -> list[Row]:
        torch.backends.cudnn.allow_tf32 = False  # for the check; it has no effect in half precision
        size = int(key.split()[0])
        bar = SimpleNamespace(update=lambda: None)
        return [self.cost.measure(self.args, size, self.device.where, self.cost.prompt(), bar) | {"status": "ok"}]


def _measured(questions: Callable[[], Iterable[Question]], tasks: tuple[str, ...], passes: tuple[str, ...]) -> Any:
    return functools.partial(Measured, questions, tasks, passes)


TABLES: dict[str, Callable[[Device, str | None], Any]] = {
    "smoke": Smoke,
    "forward": _measured(lambda: forward.questions(DTYPES, HEAD_DIMS, LENGTHS), ("entropy",), ("forward",)),
    "maps": _measured(lambda: maps.questions(DTYPES), ("map",), ("forward",)),
    "backward": _measured(lambda: backward.questions(DTYPES, BACKWARD_HEAD_DIMS, LENGTHS[:3]), ("entropy",), ("both",)),
    "launch": Launch,
    "tuning": functools.partial(Tuning, ("plain",)),
    "guidance": Guidance,
    "bench": _measured(bench_questions, ("plain",), ("forward",)),
    "schedules": functools.partial(Tuning, tuple(name for name in SCHEDULES if name != "plain")),
    "sanitize": sanitize.Sanitize,
}
