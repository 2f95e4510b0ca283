"""Launches that were seen before: everything that does not depend on addresses is looked up.

Working out strides, constants and what the compiler specializes on takes the host longer than a small attention takes
the GPU. A plan keeps the compiled kernel and its arguments, without any tensor. To launch it again, the values of the
new call replace those of the first.
"""

from __future__ import annotations

import contextvars
import copy
import operator
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

MOST = 4096  # plans kept; a program that keeps meeting new shapes drops all of them and starts again
_plans: dict[Hashable, Planned | None] = {}  # None: seen before, but launched by Triton's usual path each time


class Planned(Protocol):
    """One launch or several."""

    def launch(self, varying: tuple[Any, ...]) -> None: ...


def launch(key: Hashable, varying: tuple[Any, ...], prepare: Callable[[], Planned | None]) -> None:
    """Launch the plan of `key`. Where there is none, `prepare` launches and returns the plan to keep, if any.

    Args:
        varying: The values that differ between calls with the same key: tensors, and the scale where it is a number. A
            plan finds them in the arguments of its first launch by identity. Where two of them are one object, as in
            attention of a tensor to itself, the call has a separate plan.
    """
    present = [id(value) for value in varying if value is not None]
    if len(set(present)) < len(present):
        key = (key, *map(present.index, present))
    plan = _plans.get(key)
    if plan is not None:
        plan.launch(varying)
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
        RuntimeError: The current stream is being captured into a CUDA graph.
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
    kernel: Any, programs: int, arguments: dict[str, Any], options: dict[str, Any], varying: tuple[Any, ...],
    scratch: bool = False,
) -> Plan | None:  # fmt: skip
    """Launch a jitted kernel by Triton's usual path, and return its plan.

    Args:
        arguments: All of the kernel's arguments by name, compile-time ones too.
        options: The compiler's.
        scratch: The kernel makes descriptors on the device.

    Returns:
        None for an interpreted kernel, and on AMD, where the compiler also asks how large a tensor's storage is.
    """

    def run() -> Any:
        return kernel[(programs,)](**arguments, **options)

    compiled = _with_scratch(run) if scratch else run()
    if compiled is None or torch.version.hip:
        return None
    return Plan(compiled, programs, [arguments[name] for name in kernel.arg_names], varying, scratch)


def count() -> int:
    """How many plans there are, and calls that are known to have none."""
    return len(_plans)


def forget() -> None:
    """Drop all plans: the next launches take Triton's usual path again."""
    _plans.clear()


def is_descriptor(argument: Any) -> bool:
    """Whether an argument is a tensor descriptor: Triton's language and Gluon have classes of their own."""
    return type(argument).__name__ == "TensorDescriptor"


def layout(t: Tensor | None) -> Hashable:
    """What the arguments of a launch, and the compiler's specialization, depend on in a tensor."""
    return None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() % 16 == 0)


class Series:
    """Launches with the same `varying`, in order."""

    def __init__(self, plans: list[Plan]):
        self.plans = plans

    @classmethod
    def of(cls, plans: Iterable[Plan | None]) -> Series | None:
        """None where one of the launches has no plan."""
        found = list(plans)
        kept = [plan for plan in found if plan is not None]
        return cls(kept) if len(kept) == len(found) else None

    def launch(self, varying: tuple[Any, ...]) -> None:
        for plan in self.plans:
            plan.launch(varying)


class Plan:
    """A compiled kernel, its grid, and its arguments, with the positions of those that vary.

    A varying value is an argument, an item of an argument that is a tuple, or the tensor of a descriptor.
    """

    def __init__(self, compiled: Any, programs: int, arguments: list[Any], varying: tuple[Any, ...], scratch: bool):
        """`varying` are those of the first launch, found among the arguments by identity."""

        def find(value: Any) -> int | None:
            return next((i for i, each in enumerate(varying) if each is value and value is not None), None)

        def hidden(item: Any) -> bool:
            if is_descriptor(item):
                return find(item.base) is not None
            return isinstance(item, tuple) and any(find(each) is not None or hidden(each) for each in item)

        self.run, self.arguments, self.scratch = compiled[programs, 1, 1], list(arguments), scratch
        self.values: list[tuple[int, int]] = []  # (position, index in varying)
        self.constants: list[Any] = []  # the other items of tuples in which something varies
        self.items: list[tuple[int, Callable[[Any], tuple]]] = []  # (position, which of varying and constants)
        self.descriptors: list[tuple[int, int, Any]] = []  # (position, index in varying, template)
        for position, argument in enumerate(arguments):
            if isinstance(argument, tuple):
                if any(hidden(item) for item in argument):
                    raise ValueError(f"arguments: expected varying values at most one tuple deep, got {argument}")
                if all(find(item) is None for item in argument):
                    continue
                indices: list[Any] = []  # of the items, in (*varying, *constants)
                for item in argument:
                    index = find(item)
                    if index is None:
                        index = len(varying) + len(self.constants)
                        self.constants.append(item)
                    indices.append(index)
                if len(indices) == 1:  # of which itemgetter makes no tuple
                    indices = [slice(indices[0], indices[0] + 1)]
                self.items.append((position, operator.itemgetter(*indices)))
                self.arguments[position] = None
            elif is_descriptor(argument):
                index = find(argument.base)
                if index is not None:
                    template = copy.copy(argument)
                    template.base = None
                    self.descriptors.append((position, index, template))
                    self.arguments[position] = None
            else:
                index = find(argument)
                if index is not None:
                    self.values.append((position, index))
                    self.arguments[position] = None

    def launch(self, varying: tuple[Any, ...]) -> None:
        arguments = self.arguments.copy()
        for position, index in self.values:
            arguments[position] = varying[index]
        known = (*varying, *self.constants)
        for position, items in self.items:
            arguments[position] = items(known)
        for position, index, template in self.descriptors:
            arguments[position] = descriptor = object.__new__(type(template))  # checked when the template was made
            descriptor.__dict__.update(template.__dict__)
            descriptor.base = varying[index]
        if self.scratch:
            _with_scratch(lambda: self.run(*arguments))
        else:
            self.run(*arguments)


def _with_scratch(run: Callable[[], Any]) -> Any:
    """Run a launch that makes descriptors on the device, whose memory Triton asks its user for.

    In a separate context, so that the allocator that the user set stays.
    """

    def run_there() -> Any:
        import triton

        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
        return run()

    return contextvars.copy_context().run(run_there)
