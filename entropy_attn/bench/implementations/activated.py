"""SDPA with the kernels of other packages in the place of torch's: FlashAttention 3 and 4, and cuDNN's Python frontend.

Torch replaces the kernels for the whole process, so each implementation is activated around its own runs only.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch.nn.attention import SDPBackend

from entropy_attn.bench.implementations.contract import Implementation, half_on_cuda, not_installed
from entropy_attn.bench.implementations.torch_backends import forced

FLASH = {  # the name in torch, the module that torch imports, and how to get it
    "FA3": ("flash_attn_interface", "build hopper/ of github.com/Dao-AILab/flash-attention"),
    "FA4": ("flash_attn.cute", "pip install flash-attn-4"),
}
SWITCH = "enable_cudnn_sdp_python"


@contextlib.contextmanager
def flash_activated(name: str) -> Iterator[None]:
    """SDPA's flash backend runs the kernels of `name`; afterwards those that it ran before."""
    from torch.nn import attention

    before = attention.current_flash_attention_impl()
    attention.activate_flash_attention_impl(name)
    try:
        yield
    finally:
        if before is None:
            attention.restore_flash_attention_impl()
        else:
            attention.activate_flash_attention_impl(before)


@contextlib.contextmanager
def cudnn_python() -> Iterator[None]:
    """SDPA's cuDNN backend runs the frontend's kernels; afterwards those that it ran before."""
    switches = cudnn_switches()
    assert switches is not None  # `_cudnn_missing` refuses it otherwise
    before = switches.cudnn_sdp_python_enabled()
    switches.enable_cudnn_sdp_python(True)
    try:
        yield
    finally:
        switches.enable_cudnn_sdp_python(before)


def cudnn_switches() -> ModuleType | None:
    """The module of torch with the switch, which moved between versions; None if this torch has none."""
    return next((where for where in (torch.nn.attention, torch.backends.cuda) if hasattr(where, SWITCH)), None)


def _flash_missing(name: str) -> list[str]:
    missing = not_installed(*FLASH[name])
    if name not in getattr(torch.nn.attention, "list_flash_attention_impls", list)():
        missing.append(f"torch {torch.__version__} has no FlashAttention implementation {name}: install a newer one")
    return missing


def _cudnn_missing() -> list[str]:
    switches = cudnn_switches()
    if switches is None:
        return [f"torch {torch.__version__} has no {SWITCH}: install a newer one"]
    if not switches.is_cudnn_sdp_python_available():
        return ["cudnn.torch is not installed: pip install 'nvidia-cudnn-frontend>=1.32.3'"]
    return []


def _activated(
    name: str, backend: SDPBackend, around: Callable[[], contextlib.AbstractContextManager[None]],
    missing: Callable[[], list[str]],
) -> Implementation:  # fmt: skip
    attend = functools.partial(forced, backend)
    return Implementation(name, attend, missing=missing, reasons=half_on_cuda, around=around)


ACTIVATED = (
    *(
        _activated(
            f"sdpa-{name.lower()}", SDPBackend.FLASH_ATTENTION, functools.partial(flash_activated, name),
            functools.partial(_flash_missing, name),
        )
        for name in FLASH
    ),
    _activated("sdpa-cudnn-python", SDPBackend.CUDNN_ATTENTION, cudnn_python, _cudnn_missing),
)  # fmt: skip
