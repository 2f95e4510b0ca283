"""``with stub_driver():`` CPU tensors are launched by Triton's own launcher, by a driver that does nothing.

What a launch costs the host is then all but the driver's own part and the card's. Kernels are really compiled; outputs
stay as they were allocated. The driver is that of tests/emulation, where what is launched is also run.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from entropy_attn.kernels.common import plans, support
from entropy_attn.kernels.common.targets import MULTIPROCESSORS, SHARED_MEMORY

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
DEVICE = 98  # Triton keeps compiled kernels by device: these belong to no other


class Forgetful(dict):
    """In place of the plans: every call is one that was not seen before."""

    def __setitem__(self, key: object, value: object) -> None:
        pass


@contextlib.contextmanager
def by_triton() -> Iterator[None]:
    """Calls within take Triton's own path to a launch each time, and make no plan of it."""
    with mock.patch.object(plans, "_plans", Forgetful()), mock.patch.object(plans, "Plan", lambda *_: None):
        yield


def _keep_memory() -> None:
    """What is freed stays with the process, as it does with torch's allocator on a GPU: else the system has a part."""
    with contextlib.suppress(OSError, AttributeError):  # where the C library is another
        libc = ctypes.CDLL("libc.so.6")
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(option, 2**30)


@contextlib.contextmanager
def stub_driver(target: str = "sm_90") -> Iterator[None]:
    import triton.backends.nvidia.driver as nvidia
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from tests.emulation import build

    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1", mode=ctypes.DEFAULT_MODE | 4)  # RTLD_NOLOAD
        raise RuntimeError("a CUDA driver is loaded in this process already")
    _keep_memory()
    include = Path(nvidia.__file__).parent / "include"
    path = build.library("libcuda", [build.HERE / "driver" / "libcuda.c"], [include], soname="libcuda.so.1")
    answers = ctypes.CDLL(str(build.library("stub_driver", [Path(__file__).with_suffix(".c")])))
    lib = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    lib.stub_listen(answers.answer_launch, answers.answer_encode)
    lib.stub_card(SHARED_MEMORY[target], MULTIPROCESSORS[target])
    link = path.parent / "libcuda.so"
    if not link.exists():
        with contextlib.suppress(FileExistsError):
            link.symlink_to(path.name)

    class Driver(nvidia.CudaDriver):
        def __init__(self) -> None:
            self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
            self.get_current_device = lambda: DEVICE
            self.set_current_device = lambda device: None
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device: divmod(int(target.removeprefix("sm_")), 10)

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    plans.forget()
    with (
        mock.patch.object(knobs.nvidia, "libcuda_path", str(path.parent)),
        mock.patch.object(support, "_environment_reasons", lambda device: ()),
        mock.patch.object(support, "_target", lambda device: target),
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(mock.patch.object(driver, "_active", Driver()))  # loads the library that is named above
        stack.callback(plans.forget)
        yield
