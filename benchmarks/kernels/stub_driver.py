"""`with stub_driver():` Triton launches kernels on CPU tensors, on a driver that does nothing.

The host then does everything that it does for a launch on a GPU, except the work of the driver. Kernels are compiled;
outputs stay as they were allocated. The driver is that of tests/emulation, which also runs the kernels.
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
DEVICE = 98  # Triton caches compiled kernels by device; no other device has this index


class Forgetful(dict):
    """Replaces the plans: every call is new."""

    def __setitem__(self, key: object, value: object) -> None:
        pass


@contextlib.contextmanager
def by_triton() -> Iterator[None]:
    """Calls inside use Triton's launch path, and make no plans."""
    with mock.patch.object(plans, "_plans", Forgetful()), mock.patch.object(plans, "Plan", lambda *_: None):
        yield


def _keep_memory() -> None:
    """Keep freed memory in the process, as torch's allocator does on a GPU; system calls would take time otherwise."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
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
        raise RuntimeError("stub_driver: expected a process without a CUDA driver, but one is loaded")
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
        stack.enter_context(mock.patch.object(driver, "_active", Driver()))  # loads the library at libcuda_path
        stack.callback(plans.forget)
        yield
