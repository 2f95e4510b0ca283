"""What `torch.autocast` does to an attention call, and how to keep it out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..kernels.common.tracing import constant_in_graphs


@constant_in_graphs  # older torch cannot trace the question
def has_autocast(device_type: str) -> bool:
    """Whether `torch.autocast` knows the device; it does not know "meta"."""
    return torch._C._is_autocast_available(device_type)


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keeps an autocast region from narrowing what the block computes."""
    return torch.autocast(device_type, enabled=False) if has_autocast(device_type) else nullcontext()


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of the autocast region, None outside of one."""
    enabled = has_autocast(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast like the arguments of torch's attention: float64 stays, other floats take the region's dtype."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not (has_autocast(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )
