"""The card's global memory: the storages of the tensors that were launched with, and what of them was never written."""

from __future__ import annotations

import bisect
import ctypes
import weakref

import numpy as np
import torch
from torch import Tensor

from .program import Allocation


class Memory:
    """Every access of a kernel has to lie in one of these."""

    def __init__(self) -> None:
        self.parts: dict[int, tuple[weakref.ref, int, np.ndarray | None]] = {}  # base to storage's tensor, size, shadow
        self.kept: list[Tensor] = []

    def add(self, t: Tensor, written: bool = True) -> None:
        storage = t.untyped_storage()
        base, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        known = self.parts.get(base)
        if known is not None and known[0]() is not None and known[1] == size and written:
            return  # and what is known of it stays
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.kept.append(whole)  # as long as the card: no other tensor can come to lie here meanwhile
        self.parts[base] = (weakref.ref(whole), size, None if written else np.ones(size, np.uint8))

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
            _, size, shadow = self.parts[base]
            row.base, row.size = base, size
            row.unwritten = None if shadow is None else shadow.ctypes.data
        return table

    def unwritten(self, t: Tensor) -> int:
        """How many bytes of a tensor's storage no kernel has written."""
        storage = t.untyped_storage()
        _, _, shadow = self.parts[storage.data_ptr()]
        return 0 if shadow is None else int(shadow.sum())

    def owner(self, address: int) -> int | None:
        """The base of the storage that holds an address."""
        bases = sorted(self.parts)
        at = bisect.bisect_right(bases, address) - 1
        return bases[at] if at >= 0 and address < bases[at] + self.parts[bases[at]][1] else None
