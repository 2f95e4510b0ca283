"""What an implementation is: a function with one signature, and reasons for calls that it does not serve."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

TASKS = ("plain", "lse", "entropy", "map")  # what a call computes besides its output
PASSES = ("forward", "both")  # both: forward and backward, with a gradient of every result

Results = dict[str, Tensor]  # "out", and that of the task: "lse", "entropy" or "map"


@dataclass(frozen=True)
class Ask:
    """What a call computes.

    Attributes:
        task: one of `TASKS`.
        gradient: whether the backward pass is computed, too.
        map_keys: for the task "map", the range of keys of the head-averaged map.
    """

    task: str = "plain"
    gradient: bool = False
    map_keys: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {self.task!r}")
        if (self.task == "map") != (self.map_keys is not None):
            raise ValueError(f"map_keys: expected a range of keys for the task 'map', else None, got {self.map_keys}")

    @property
    def map_slice(self) -> slice:
        """`map_keys` of the task "map"."""
        if self.map_keys is None:
            raise ValueError(f"task {self.task!r}: it has no map_keys")
        return slice(*self.map_keys)

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results."""
        return ("out",) if self.task == "plain" else ("out", self.task)


Attend = Callable[[Tensor, Tensor, Tensor, Ask], Results]
Reasons = Callable[[Tensor, Tensor, Tensor, Ask], list[str]]


@dataclass(frozen=True)
class Implementation:
    """One implementation of attention.

    Attributes:
        name: unique in the registry.
        attend: (query, key, value, ask) -> results; tensors are (B, H, N, D).
        tasks: what it can compute.
        passes: includes "both" if it has a backward pass.
        missing: what has to be installed before it serves any call; the other reasons are then left out.
        reasons: (query, key, value, ask) -> all reasons why it does not serve this call; empty if it may.
        ours: whether it belongs to this package.
        slack: multiplies the error that the gate allows, for methods that are less precise by design; rows still show
            the error.
        around: makes the context in which it runs, for what changes torch as a whole; entered outside of the clock, and
            left before another implementation runs.
        matrices: how many float32 matrices (Nq, Nk) it holds at once per batch and head. On a CPU this is compared with
            the free memory before a run, because running out of memory there kills the process.
    """

    name: str
    attend: Attend
    tasks: tuple[str, ...] = ("plain",)
    passes: tuple[str, ...] = PASSES
    reasons: Reasons = lambda query, key, value, ask: []
    missing: Callable[[], list[str]] = list
    ours: bool = False
    slack: float = 1.0
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    matrices: float = 0.0

    def competes(self, ask: Ask) -> bool:
        """Whether it has this task; if not, there is no row for it."""
        return ask.task in self.tasks

    def unsupported_reasons(self, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
        """All reasons why it does not serve this call; empty if it may."""
        missing = self.missing()
        if missing:
            return missing
        one_way = ["it has no backward pass"] if ask.gradient and "both" not in self.passes else []
        return one_way + self.reasons(query, key, value, ask)

    def row_name(self, ask: Ask) -> str:
        """Its name in rows: "name" or "name+task"."""
        return self.name if ask.task == "plain" else f"{self.name}+{ask.task}"


def not_installed(module: str, install: str) -> list[str]:
    """The reason if `module` cannot be found, with what to install; of a dotted name, its parents are imported."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a parent
        found = None
    return [] if found else [f"{module} is not installed: {install}"]


def half_on_cuda(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    """The reasons that most GPU libraries have in common."""
    reasons = []
    if query.device.type != "cuda":
        reasons.append(f"expected tensors on a CUDA device, got {query.device.type}")
    if query.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"expected dtype float16 or bfloat16, got {query.dtype}")
    return reasons
