"""SDPA with the kernels of other packages in the place of torch's: FlashAttention 3 and 4, and cuDNN's Python frontend.

Torch replaces the kernels for the whole process, so each implementation is activated around its own runs only.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from entropy_attn.bench.implementations.contract import Ask, Implementation, half_on_cuda, not_installed
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
    assert switches is not None  # `_cudnn_reasons` refuses it otherwise
    before = switches.cudnn_sdp_python_enabled()
    switches.enable_cudnn_sdp_python(True)
    try:
        yield
    finally:
        switches.enable_cudnn_sdp_python(before)


def cudnn_switches() -> ModuleType | None:
    """The module of torch with the switch, which moved between versions; None if this torch has none."""
    return next((where for where in (torch.nn.attention, torch.backends.cuda) if hasattr(where, SWITCH)), None)


def _flash_reasons(name: str, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    reasons = half_on_cuda(query, key, value, ask) + not_installed(*FLASH[name])
    known = getattr(torch.nn.attention, "list_flash_attention_impls", list)()
    if name not in known:
        reasons.append(f"torch {torch.__version__} has no FlashAttention implementation {name}, only {known}")
    return reasons


def _cudnn_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    reasons = half_on_cuda(query, key, value, ask)
    switches = cudnn_switches()
    if switches is None:
        reasons.append(f"torch {torch.__version__} has no {SWITCH}: install a newer one")
    elif not switches.is_cudnn_sdp_python_available():
        reasons.append("cudnn.torch is not installed: pip install 'nvidia-cudnn-frontend>=1.32.3'")
    return reasons


def _activated(
    name: str, backend: SDPBackend, around: Callable[[], contextlib.AbstractContextManager[None]],
    reasons: Callable[..., list[str]],
) -> Implementation:  # fmt: skip
    return Implementation(name, functools.partial(forced, backend), reasons=reasons, around=around)


ACTIVATED = (
    *(
        _activated(
            f"sdpa-{name.lower()}", SDPBackend.FLASH_ATTENTION, functools.partial(flash_activated, name),
            functools.partial(_flash_reasons, name),
        )
        for name in FLASH
    ),
    _activated("sdpa-cudnn-python", SDPBackend.CUDNN_ATTENTION, cudnn_python, _cudnn_reasons),
)  # fmt: skip
