"""The exception of this package."""

from __future__ import annotations

from collections.abc import Sequence


class Unsupported(RuntimeError):
    """A requested implementation does not support the attention call.

    Args:
        impl: the requested implementation.
        reasons: every reason, as sentences.

    Attributes:
        impl: the requested implementation.
        reasons: the reasons, as a list.
    """

    def __init__(self, impl: str, reasons: Sequence[str]):
        self.impl = impl
        self.reasons = list(reasons)
        super().__init__(f"impl={impl!r} cannot serve this call: " + "; ".join(self.reasons))

    def __reduce__(self):
        return type(self), (self.impl, self.reasons)
