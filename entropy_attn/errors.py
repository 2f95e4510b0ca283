"""The package's own exception."""

from __future__ import annotations

from collections.abc import Sequence


class Unsupported(RuntimeError):
    """An implementation that was asked for by name cannot serve the call; ``reasons`` lists every obstacle."""

    def __init__(self, impl: str, reasons: Sequence[str]):
        self.impl = impl
        self.reasons = list(reasons)
        super().__init__(f"impl={impl!r} cannot serve this call: " + "; ".join(self.reasons))

    def __reduce__(self):
        return type(self), (self.impl, self.reasons)
