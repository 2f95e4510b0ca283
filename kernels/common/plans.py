"""A launch with shapes that were seen before: all that does not depend on addresses is looked up.

Working out strides, constants and what the compiler specialises on takes the host longer than a small attention takes
the GPU. A plan keeps the compiled kernel and its arguments, without any tensor; to launch it again, this call's own
values are put in their places.
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

MOST = 4096  # plans kept; who meets ever new shapes begins anew rather than grows
_plans: dict[Hashable, Planned | None] = {}  # None: seen before, and launched by way of the compiler each time


class Planned(Protocol):
    """One launch or several."""

    def launch(self, own: tuple[Any, ...]) -> None: ...


def launch(key: Hashable, own: tuple[Any, ...], prepare: Callable[[], Planned | None]) -> None:
    """Launch the plan of ``key``. Where there is none, ``prepare`` launches and returns what to keep, if anything.

    ``own`` are the values in which calls of one key differ. Where one of them stands in several places, as in attention
    of a tensor to itself, the plan finds it in all, and serves such calls alone.
    """
    present = [id(value) for value in own if value is not None]
    if len(set(present)) < len(present):
        key = (key, *map(present.index, present))
    plan = _plans.get(key)
    if plan is not None:
        plan.launch(own)
        return
    if key not in _plans:
        refuse_to_be_captured()
    made = prepare()
    if len(_plans) >= MOST:
        forget()
    _plans[key] = made


def refuse_to_be_captured() -> None:
    """For a call that was not seen before.

    Raises:
        RuntimeError: where the current stream is being captured into a CUDA graph.
    """
    try:
        capturing = torch.cuda.is_current_stream_capturing()
    except RuntimeError:  # of a torch that was built without CUDA
        return
    if capturing:
        raise RuntimeError(
            "a kernel of entropy_attn is not compiled and loaded yet, and a CUDA graph is being captured: "
            "make the same call (shapes, strides, dtypes, options) once before the capture"
        )


def first_launch(
    kernel: Any, programs: int, arguments: list[Any], constants: dict[str, Any], options: dict[str, Any],
    own: tuple[Any, ...], scratch: bool = False,
) -> Plan | None:  # fmt: skip
    """Launch a jitted kernel by way of the compiler, and return its plan. ``scratch``: it makes descriptors by itself.

    There is none for an interpreted kernel, nor on AMD, where the compiler also asks how large a tensor's storage is.
    """

    def run() -> Any:
        return kernel[(programs,)](*arguments, **constants, **options)

    compiled = _with_scratch(run) if scratch else run()
    if compiled is None or torch.version.hip:
        return None
    names = kernel.arg_names[len(arguments) :]
    return Plan(compiled, programs, [*arguments, *(constants[name] for name in names)], own, scratch)


def count() -> int:
    """How many plans there are, and calls that are known to have none."""
    return len(_plans)


def forget() -> None:
    """Drop all plans: the next launches go by way of the compiler again."""
    _plans.clear()


def layout(t: Tensor | None) -> Hashable:
    """What the arguments of a launch, and the compiler's specialisation, depend on in a tensor."""
    return None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() % 16 == 0)


class Series:
    """Launches of the same ``own``, in order."""

    def __init__(self, plans: list[Plan]):
        self.plans = plans

    def launch(self, own: tuple[Any, ...]) -> None:
        for plan in self.plans:
            plan.launch(own)


class Plan:
    """A compiled kernel, its grid, and its arguments with the places where a call's own values go."""

    def __init__(self, compiled: Any, programs: int, arguments: list[Any], own: tuple[Any, ...], scratch: bool):
        """``own`` are found among the arguments by identity, and as the tensors of descriptors."""
        from triton.tools.tensor_descriptor import TensorDescriptor

        self.run, self.arguments, self.scratch = compiled[programs, 1, 1], list(arguments), scratch
        self.values: list[tuple[int, int]] = []  # (place, index in own)
        self.descriptors: list[tuple[int, int, Any]] = []  # (place, index in own, template)
        for place, argument in enumerate(arguments):
            described = isinstance(argument, TensorDescriptor)
            value = argument.base if described else argument
            index = next((i for i, each in enumerate(own) if each is value and each is not None), None)
            if index is None:
                continue
            self.arguments[place] = None
            if described:
                template = copy.copy(argument)
                template.base = None
                self.descriptors.append((place, index, template))
            else:
                self.values.append((place, index))

    def launch(self, own: tuple[Any, ...]) -> None:
        arguments = self.arguments.copy()
        for place, index in self.values:
            arguments[place] = own[index]
        for place, index, template in self.descriptors:
            arguments[place] = descriptor = object.__new__(type(template))  # as one that was checked when it was made
            descriptor.__dict__.update(template.__dict__)
            descriptor.base = own[index]
        if self.scratch:
            _with_scratch(lambda: self.run(*arguments))
        else:
            self.run(*arguments)


def _with_scratch(run: Callable[[], Any]) -> Any:
    """Run a launch that makes descriptors on the device, whose memory Triton asks its user for.

    In a context of its own, so that what the user set stays.
    """

    def run_there() -> Any:
        import triton

        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
        return run()

    return contextvars.copy_context().run(run_there)
