"""From the device to the host: what recorders kept, in one transfer for each device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from entropy_attn.scale import CallInfo


class Recorded(Protocol):
    """One attention call as a recorder keeps it."""

    @property
    def info(self) -> CallInfo: ...
    @property
    def scale(self) -> float | torch.Tensor: ...
    @property
    def branches(self) -> tuple[str, ...]: ...


def scales_of(records: Sequence[Recorded]) -> list[list[float]]:
    """The scales of every record, for each head of its first branch, then of the next."""
    tensors = iter(to_host([r.scale.flatten().float() for r in records if isinstance(r.scale, torch.Tensor)]))
    scales = []
    for record in records:
        values = next(tensors).tolist() if isinstance(record.scale, torch.Tensor) else [float(record.scale)]
        heads = record.info.num_heads
        of_heads = values * heads if len(values) == 1 else values
        scales.append(of_heads * len(record.branches) if len(of_heads) == heads else of_heads)
    return scales


def kept_scale(scale: float | torch.Tensor, branches: int) -> float | torch.Tensor:
    """The scale as a record may keep it, since a policy may change its tensor later.

    Returns:
        A number, or a tensor of shape (), (H,) or (branches, H): the mean over the samples of each branch.
    """
    if not isinstance(scale, torch.Tensor):
        return scale
    if scale.dim() < 2:
        return scale.detach().clone()
    return scale.detach().unflatten(0, (branches, -1)).mean(dim=1)


def to_host(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """1-D tensors as arrays, in one transfer for each device."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        by_device[tensor.device].append(index)
    arrays: list[np.ndarray] = [np.empty(0)] * len(tensors)
    for indices in by_device.values():
        joined = torch.cat([tensors[index] for index in indices]).cpu().numpy()
        ends = np.cumsum([tensors[index].numel() for index in indices])[:-1]
        for index, part in zip(indices, np.split(joined, ends), strict=True):
            arrays[index] = part
    return arrays
