"""The host's part of a launch, without a GPU: stand-ins replace the compiler and the driver.

The stand-in driver records what a call passes to it, so that two paths to the same launch can be compared, and the
host's part can be timed.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from entropy_attn.kernels.backward import key, query, rows
from entropy_attn.kernels.common import plans, support
from entropy_attn.kernels.forward import kernel as forward
from entropy_attn.kernels.maps import kernel as maps
from entropy_attn.kernels.pingpong import kernel as pingpong

DEVICE = 97  # Triton caches compiled kernels by device: no real device has this index


@dataclass(frozen=True)
class Launched:
    """One launch as the driver would receive it."""

    specialized_on: str  # what the compiler received: types, alignments, constants, options
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


class Driver(DriverBase):
    """The methods of a driver that Triton's launch path calls."""

    def __init__(self, target: GPUTarget):
        self.target = target

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> None:
        raise RuntimeError("this driver runs no kernels")


class Compiled:
    """A stand-in for a compiled kernel, with the attributes that a launch uses."""

    function = 1
    packed_metadata = ()

    def __init__(self, source: Any, options: dict[str, Any], launches: list[Launched] | None):
        signature = dict(source.signature)
        self.specialized_on = repr(
            (source.fn.__name__, signature, source.constants, source.attrs, sorted(options.items()))
        )
        self.launches = launches

    def launch_metadata(self, grid: tuple, stream: int, *arguments: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, stream: int, function: int, metadata: Any, *rest: Any) -> None:
        if self.launches is not None:
            seen = tuple(map(_seen, rest[3:]))  # after the metadata and the hooks of the launch
            self.launches.append(Launched(self.specialized_on, (x, y, z), seen))

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def runner(*arguments: Any) -> None:
            stream = driver.active.get_current_stream(driver.active.get_current_device())
            metadata = self.launch_metadata(grid, stream, *arguments)
            hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
            self.run(*grid, stream, self.function, self.packed_metadata, metadata, *hooks, *arguments)

        return runner


def _seen(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(_seen, argument))
    if isinstance(argument, Tensor):
        return ("tensor", argument.data_ptr(), argument.dtype)
    if plans.is_descriptor(argument):
        lists = (tuple(argument.shape), tuple(argument.strides), tuple(argument.block_shape))
        return ("descriptor", argument.base.data_ptr(), argument.base.dtype, *lists, argument.padding)
    return argument


def launched(launches: list[Launched], call: Callable[[], object], given: Iterable[Any]) -> list[Launched]:
    """The launches of one call; tensors that it allocated are numbered in the order of use, instead of by address.

    `given` are the caller's tensors, which keep their addresses.
    """
    launches.clear()
    kept = call()  # keeps the results alive: two tensors never have the same address
    addresses = {t.data_ptr() for t in given if isinstance(t, Tensor)}
    met: dict[int, int] = {}

    def named(argument: Any) -> Any:
        if not isinstance(argument, tuple):
            return argument
        if argument[:1] not in (("tensor",), ("descriptor",)):
            return tuple(map(named, argument))
        if argument[1] in addresses:
            return argument
        return (f"allocated {argument[0]}", met.setdefault(argument[1], len(met)), *argument[2:])

    found = [Launched(each.specialized_on, each.grid, tuple(map(named, each.arguments))) for each in launches]
    del kept
    return found


def host_calls(call: Callable[[], object]) -> int:
    """The number of Python and C function calls in one call, which is the same on every machine."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls


@contextlib.contextmanager
def recorded(target: str = "sm_90", keep: bool = True) -> Iterator[list[Launched]]:
    """CPU tensors launch as on `target`, but no kernel runs: outputs stay as they were allocated.

    With `keep=False` nothing is recorded, so that a launch takes the host's time only.
    """
    launches: list[Launched] = []
    original_compile = JITFunction._do_compile

    def do_compile(kernel: JITFunction, *arguments: Any, **keywords: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            make = functools.partial(Compiled, launches=launches if keep else None)
            patch.setattr(kernel, "compile", lambda source, target, options: make(source, options))
            return original_compile(kernel, *arguments, **keywords)

    plans.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "_environment_reasons", lambda device: ())
        patch.setattr(support, "_target", lambda device: target)
        patch.setattr(JITFunction, "_do_compile", do_compile)
        patch.setattr(driver, "_active", Driver(GPUTarget("cuda", int(target.removeprefix("sm_")), 32)))
        try:
            yield launches
        finally:
            plans.forget()
            for kernel in (
                each for module in (forward, pingpong, maps, rows, query, key) for each in vars(module).values()
            ):
                if isinstance(kernel, JITFunction):
                    kernel.device_caches.pop(DEVICE, None)
