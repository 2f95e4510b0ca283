"""The global memory of the card: the storages of all tensors in launches, and their bytes that were never written."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .program import Allocation


@dataclass
class Part:
    """A storage, and which of its bytes were never written."""

    data: Tensor  # all bytes; keeps them alive, so that no other tensor gets the same address
    unwritten: np.ndarray | None = None
    poison: np.ndarray | None = None  # the initial bytes, one element per row

    def refresh(self) -> None:
        """Mark what torch has written since; the machine marks what kernels write."""
        if self.unwritten is not None:
            width = self.poison.shape[1]
            changed = (self.data.numpy().reshape(-1, width) != self.poison).any(1)
            self.unwritten.reshape(-1, width)[changed] = 0


class Memory:
    """The memory that kernels may access."""

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}  # by base address

    def add(self, t: Tensor, written: bool = True) -> None:
        storage = t.untyped_storage()
        base, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        known = self.parts.get(base)
        if known is not None and known.data.numel() == size and written:
            return  # keep what is known about it
        part = Part(torch.empty(0, dtype=torch.uint8).set_(storage))
        if not written:
            part.unwritten = np.ones(size, np.uint8)
            part.poison = part.data.numpy().reshape(-1, t.element_size()).copy()
        self.parts[base] = part

    def scratch(self, size: int, alignment: int, stream: int | None) -> Tensor:
        """Memory that a launch requests for the tensor maps that it creates."""
        room = torch.zeros(size + alignment, dtype=torch.uint8)
        start = -room.data_ptr() % alignment
        self.add(room)
        return room[start : start + size]

    def table(self) -> ctypes.Array:
        """All parts in the order of addresses, which the machine's search needs."""
        bases = sorted(self.parts)
        table = (Allocation * len(bases))()
        for row, base in zip(table, bases, strict=True):
            part = self.parts[base]
            part.refresh()
            row.base, row.size = base, part.data.numel()
            row.unwritten = None if part.unwritten is None else part.unwritten.ctypes.data
        return table

    def unwritten(self, t: Tensor) -> int:
        """How many bytes of a tensor's storage were never written."""
        part = self.parts[t.untyped_storage().data_ptr()]
        part.refresh()
        return 0 if part.unwritten is None else int(part.unwritten.sum())
