"""The card's global memory: the storages of the tensors that were launched with, and what of them was never written."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .program import Allocation


@dataclass
class Part:
    """A storage, and which of its bytes nobody has written."""

    whole: Tensor  # keeps it for as long as the card: no other tensor can come to lie there meanwhile
    unwritten: np.ndarray | None = None
    poison: np.ndarray | None = None  # what it held at first, an element a row

    def refresh(self) -> None:
        """What torch wrote meanwhile is written as well; the machine marks for itself what kernels write."""
        if self.unwritten is not None:
            width = self.poison.shape[1]
            changed = (self.whole.numpy().reshape(-1, width) != self.poison).any(1)
            self.unwritten.reshape(-1, width)[changed] = 0


class Memory:
    """Every access of a kernel has to lie in one of these."""

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}  # by the base address

    def add(self, t: Tensor, written: bool = True) -> None:
        storage = t.untyped_storage()
        base, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        known = self.parts.get(base)
        if known is not None and known.whole.numel() == size and written:
            return  # and what is known of it stays
        part = Part(torch.empty(0, dtype=torch.uint8).set_(storage))
        if not written:
            part.unwritten = np.ones(size, np.uint8)
            part.poison = part.whole.numpy().reshape(-1, t.element_size()).copy()
        self.parts[base] = part

    def scratch(self, size: int, alignment: int, stream: int | None) -> Tensor:
        """Memory that a launch asks for, for tensor maps that it makes itself."""
        room = torch.zeros(size + alignment, dtype=torch.uint8)
        start = -room.data_ptr() % alignment
        self.add(room)
        return room[start : start + size]

    def table(self) -> ctypes.Array:
        """In order of addresses, as the machine searches them."""
        bases = sorted(self.parts)
        table = (Allocation * len(bases))()
        for row, base in zip(table, bases, strict=True):
            part = self.parts[base]
            part.refresh()
            row.base, row.size = base, part.whole.numel()
            row.unwritten = None if part.unwritten is None else part.unwritten.ctypes.data
        return table

    def unwritten(self, t: Tensor) -> int:
        """How many bytes of a tensor's storage nobody has written."""
        part = self.parts[t.untyped_storage().data_ptr()]
        part.refresh()
        return 0 if part.unwritten is None else int(part.unwritten.sum())
