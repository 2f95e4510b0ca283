"""A case: a workload, a task and a dtype; and random inputs for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_attn.bench.implementations.contract import Ask, Implementation, Results
from entropy_attn.bench.workloads import Workload

BACKWARD_FLOPS = 2.5  # relative to the forward pass


@dataclass(frozen=True)
class Inputs:
    """Query, key, value, and the gradients of the results by name."""

    query: Tensor
    key: Tensor
    value: Tensor
    grads: Results

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.query, self.key, self.value, *self.grads.values()))


@dataclass(frozen=True)
class Case:
    """One measurement: which attention call, what it computes, and in which dtype."""

    workload: Workload
    ask: Ask
    dtype: torch.dtype

    @property
    def flops(self) -> float:
        return self.workload.flops * (1.0 + BACKWARD_FLOPS * self.ask.gradient)

    @property
    def label(self) -> str:
        what = f"{self.ask.task}{', forward and backward' if self.ask.gradient else ''}"
        return f"{self.workload.label} {dtype_name(self.dtype)}: {what}"

    def inputs(self, device: torch.device) -> Inputs:
        """New random inputs, different in each call."""
        w = self.workload
        rows = (w.batch, w.heads, w.seqlen)
        lengths = (w.seqlen, w.seqlen_k, w.seqlen_k)
        query, key, value = (
            torch.randn(w.batch, w.heads, n, w.head_dim, dtype=self.dtype, device=device) for n in lengths
        )  # fmt: skip
        grads = {}
        if self.ask.gradient:
            grads["out"] = torch.randn(*rows, w.head_dim, dtype=self.dtype, device=device)
            if self.ask.task in ("lse", "entropy"):
                grads[self.ask.task] = torch.randn(rows, device=device)
            elif self.ask.map_keys is not None:
                start, stop = self.ask.map_keys
                grads["map"] = torch.randn(w.batch, w.seqlen, stop - start, device=device)
        return Inputs(query, key, value, grads)


def run(implementation: Implementation, ask: Ask, inputs: Inputs) -> Results:
    """The results of one call; with a gradient, also those of query, key and value."""
    if not ask.gradient:
        with torch.no_grad():
            return implementation.attend(inputs.query, inputs.key, inputs.value, ask)
    query, key, value = leaves = [t.detach().requires_grad_() for t in (inputs.query, inputs.key, inputs.value)]
    with torch.enable_grad():
        results = implementation.attend(query, key, value, ask)
        given = [inputs.grads[name].to(t.dtype) for name, t in results.items()]
        derived = torch.autograd.grad(list(results.values()), leaves, given)
    return {name: t.detach() for name, t in results.items()} | dict(zip(("dq", "dk", "dv"), derived, strict=True))


def cases(
    workloads: Iterable[Workload], tasks: Sequence[str], passes: Sequence[str], dtypes: Sequence[torch.dtype]
) -> Iterator[Case]:
    """All cases of these workloads, tasks, passes and dtypes that make sense."""
    for workload in workloads:
        for dtype in dtypes:
            for gradient in (name == "both" for name in passes):
                for task in (task for task in workload.tasks if task in tasks):
                    yield Case(workload, Ask(task, gradient, workload.map_keys if task == "map" else None), dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
