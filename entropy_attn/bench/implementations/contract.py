"""What an implementation is to the benchmark: one signature, and what it says about calls that it does not serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TASKS = ("plain", "lse", "entropy", "map")  # what is asked of a call besides its output
PASSES = ("forward", "both")  # both: forward and backward, with a gradient of every result

Results = dict[str, Tensor]  # "out", and what the task asks for: "lse", "entropy", "map"


@dataclass(frozen=True)
class Ask:
    """What a call is asked for. ``map_keys`` is the range of keys whose head-averaged map is wanted."""

    task: str = "plain"
    gradient: bool = False
    map_keys: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}: give one of {', '.join(TASKS)}")
        if (self.task == "map") != (self.map_keys is not None):
            raise ValueError(
                f"task {self.task!r} with map_keys={self.map_keys}: a map needs keys, and nothing else does"
            )

    @property
    def map_slice(self) -> slice:
        """`map_keys` of the task "map"."""
        if self.map_keys is None:
            raise ValueError(f"task {self.task!r}: it has no map_keys")
        return slice(*self.map_keys)

    @property
    def results(self) -> tuple[str, ...]:
        return ("out",) if self.task == "plain" else ("out", self.task)


Attend = Callable[[Tensor, Tensor, Tensor, Ask], Results]
Reasons = Callable[[Tensor, Tensor, Tensor, Ask], list[str]]


@dataclass(frozen=True)
class Implementation:
    """One way to attention.

    tasks: what it can be asked for. passes: "both" where it has a backward pass.
    reasons: every reason why it does not serve a call, from query, key and value as they are; empty where it may.
    slack: the gate's allowance times this, for a method that is coarser by design; the row still shows its error.
    matrices: (Nq, Nk) matrices of float32 per batch and head that it holds at once: what a CPU, whose memory ends
        without an error, is asked before a run.
    """

    name: str
    attend: Attend
    tasks: tuple[str, ...] = ("plain",)
    passes: tuple[str, ...] = PASSES
    reasons: Reasons = lambda query, key, value, ask: []
    ours: bool = False
    slack: float = 1.0
    matrices: float = 0.0

    def competes(self, ask: Ask) -> bool:
        """Whether it is made for what is asked at all; if not, the table has no row for it."""
        return ask.task in self.tasks

    def unsupported_reasons(self, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
        """Every reason why it does not serve this call; empty where it may."""
        missing = ["it has no backward pass"] if ask.gradient and "both" not in self.passes else []
        return missing + self.reasons(query, key, value, ask)

    def row_name(self, ask: Ask) -> str:
        return self.name if ask.task == "plain" else f"{self.name}+{ask.task}"


def half_on_cuda(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    """The reasons that most GPU libraries share."""
    reasons = []
    if query.device.type != "cuda":
        reasons.append(f"the tensors are on the {query.device.type}, and it needs a CUDA device")
    if query.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"dtype {query.dtype} is neither float16 nor bfloat16")
    return reasons
