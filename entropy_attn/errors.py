"""The exceptions of the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Unsupported(RuntimeError):
    """An implementation that was asked for by name cannot serve the call; ``reasons`` lists every obstacle."""

    def __init__(self, impl: str, reasons: Sequence[str]):
        self.impl = impl
        self.reasons = list(reasons)
        super().__init__(f"impl={impl!r} cannot serve this call: " + "; ".join(self.reasons))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.impl, self.reasons)


class Unroutable(Unsupported):
    """A model, or a layer of it, whose attention cannot be routed; `reasons` says why, with the remedy if any."""

    def __init__(self, what: str, reasons: Sequence[str]):
        self.what = what
        self.reasons = list(reasons)
        RuntimeError.__init__(self, f"cannot route {what}: " + "; ".join(self.reasons))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.reasons)
