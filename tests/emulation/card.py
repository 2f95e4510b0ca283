"""`with emulated("sm_90"):` calls on CPU tensors take Triton's path to a GPU, and the compiled PTX is run here.

Triton's launcher is the real one; libcuda.so.1 is replaced by driver/libcuda.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import triton.backends.nvidia.driver as nvidia
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import _allocation, driver

from entropy_attn.kernels.backward import launch as launch_backward
from entropy_attn.kernels.common import arguments, plans, support
from entropy_attn.kernels.common.targets import MULTIPROCESSORS, SHARED_MEMORY
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.maps import launch as launch_maps

from . import build, launches, tensormaps
from .memory import Memory
from .program import Counts, Finding, Program

LAUNCHED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint), ctypes.c_uint,
    ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint,
)  # fmt: skip
STREAM = 0xABC0
ILLEGAL = 719  # CUDA_ERROR_LAUNCH_FAILED


@dataclass
class Launch:
    """One completed launch."""

    kernel: str
    grid: tuple[int, int, int]
    counts: Counts
    source: str  # file and line where the kernel begins


@dataclass
class Card:
    """The card of one `emulated` block."""

    target: str
    seed: int = 0  # 0 runs warps in order; any other seed shuffles them
    memory: Memory = field(default_factory=Memory)
    launches: list[Launch] = field(default_factory=list)
    finding: BaseException | None = None
    current: tuple[Any, Any, tuple] | None = None  # source, metadata, arguments of the current launch
    edit: Callable[[Program], Program] | None = None  # plants a fault
    limit: int | None = None  # warp instructions in one launch

    @property
    def arch(self) -> int:
        return int(self.target.removeprefix("sm_"))

    @property
    def shared_memory(self) -> int:
        return SHARED_MEMORY[self.target]

    def summary(self) -> str:
        """Which kernels ran: unlike a finding, a wrong result does not name a line."""
        ran = dict.fromkeys(f"{one.kernel} ({one.source})" for one in self.launches)
        return f"launched on {self.target}: {', '.join(ran) or 'nothing'}"


_card: Card | None = None
_functions: dict[int, str] = {}  # the driver's handle to PTX


def card() -> Card:
    if _card is None:
        raise RuntimeError("no card is emulated here: use `with emulated(target):`")
    return _card


@functools.lru_cache(maxsize=64)
def program(text: str) -> Program:
    return Program(text)


def _launched(function: int, grid: Any, block: Any, shared: int, stream: int, addresses: Any, attributes: int) -> int:
    active = card()
    try:
        text = _functions[function]
        made = program(text) if active.edit is None else active.edit(program(text))
        source, metadata, arguments_ = active.current
        values = launches.read_parameters(made.kernel, addresses)
        launches.check_shape(made.kernel, block[:3], shared, active.shared_memory, attributes)
        launches.check_arguments(made.kernel, source, metadata, arguments_, values)
        if stream != STREAM:
            raise launches.wrong(made.kernel, f"on stream {stream:#x} instead of the current one")
        size = (grid[0], grid[1], grid[2])
        counts = made.run(size, shared, values, active.memory.table(), active.seed, active.limit)
        begins = source.fn.fn.__code__
        begins = f"{'/'.join(Path(begins.co_filename).parts[-2:])}:{begins.co_firstlineno}"
        active.launches.append(Launch(made.kernel.name, size, counts, begins))
    except BaseException as error:  # exceptions cannot pass through C: `Launcher` raises it
        active.finding = error
        return ILLEGAL
    return 0


_on_launch, _on_encode = LAUNCHED(_launched), tensormaps.ENCODED(tensormaps.encode)


@functools.cache
def _driver_library() -> ctypes.CDLL:
    """Load our driver before anything else loads libcuda.so.1; later loads of that name get ours."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1", mode=ctypes.DEFAULT_MODE | 4)  # RTLD_NOLOAD
        raise RuntimeError("this process has already loaded a CUDA driver: emulate in a separate process")
    include = Path(nvidia.__file__).parent / "include"
    path = build.library("libcuda", [build.HERE / "driver" / "libcuda.c"], [include], soname="libcuda.so.1")
    lib = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    lib.stub_listen(_on_launch, _on_encode)
    link = path.parent / "libcuda.so"
    if not link.exists():
        with contextlib.suppress(FileExistsError):
            link.symlink_to(path.name)
    knobs.nvidia.libcuda_path = str(path.parent)
    knobs.runtime.kernel_load_end_hook.add(_loaded)
    return lib


def _loaded(module: int, function: int, name: str, metadata_group: dict[str, str], hash_: str) -> None:
    _functions[function] = next(Path(p) for c, p in metadata_group.items() if c.endswith(".ptx")).read_text()


class Launcher(nvidia.CudaLauncher):
    """Triton's launcher, which also passes on what it launches, and then raises what was found."""

    def __init__(self, source: Any, metadata: Any):
        super().__init__(source, metadata)
        self.source, self.metadata = source, metadata

    def __call__(self, *all_: Any) -> None:
        active = card()
        active.current, active.finding = (self.source, self.metadata, all_[9:]), None
        for argument in all_[9:]:
            for item in argument if isinstance(argument, tuple) else (argument,):
                base = getattr(item, "base", item)
                if isinstance(base, Tensor):
                    active.memory.add(base)
        before = _allocation._allocator.set(active.memory.scratch)
        try:
            super().__call__(*all_)
        except RuntimeError:
            if active.finding is None:
                raise
        finally:
            _allocation._allocator.reset(before)
            active.current = None
        if active.finding is not None:
            raise active.finding


class Driver(nvidia.CudaDriver):
    """The driver of the card that is currently emulated."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = nvidia.CudaUtils(), Launcher
        self.get_current_device = lambda: 900 + card().arch  # Triton caches compiled kernels by device
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: STREAM
        self.get_device_capability = lambda device: divmod(card().arch, 10)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", card().arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def emulated(
    target: str, seed: int = 0, edit: Callable[[Program], Program] | None = None, limit: int | None = None
) -> Iterator[Card]:
    """In this context, CPU tensors are on a card of this target: launches run at once, and a fault raises `Finding`.

    A `seed` other than 0 shuffles the order of warps. `edit` returns the program to run instead of the launched one. A
    launch of more than `limit` warp instructions counts as endless. A failed assertion is extended by what ran.
    """
    global _card
    if build.compiler() is None:
        pytest.skip("no C compiler: the emulated card is made of C")
    if _card is not None:
        raise RuntimeError(f"{_card.target} is already emulated in this process")
    lib = _driver_library()
    active = Card(target, seed, edit=edit, limit=limit)
    lib.stub_card(active.shared_memory, MULTIPROCESSORS[target])
    plans.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "_environment_reasons", lambda device: ())
        patch.setattr(support, "_target", lambda device: target)
        for module in (arguments, launch, launch_backward, launch_maps):
            patch.setattr(module, "allocate", functools.partial(_poisoned, active))
        patch.setattr(driver, "_active", Driver())
        _card = active
        try:
            yield active
        except AssertionError as error:
            error.args = (f"{error}\n  {active.summary()}",)
            raise
        finally:
            _card = None
            plans.forget()


def _poisoned(active: Card, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Outputs are NaN until they are written; reading them earlier is a finding."""
    made = torch.full(shape, math.nan, dtype=dtype, device=device)
    if not isinstance(made, FakeTensor):  # a tracer only needs shape and strides
        active.memory.add(made, written=False)
    return made


__all__ = ["Card", "Finding", "Launch", "card", "emulated"]
