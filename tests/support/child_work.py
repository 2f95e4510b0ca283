"""What a new process runs in the tests of its clock; imports nothing large, because the process imports it, too."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def take(mib: int) -> Callable[[], float]:
    """Takes memory when it is called."""
    return lambda: float(torch.ones(mib * 2**20 // 4).sum())


def exit_at_once() -> None:
    os._exit(3)
