"""The exceptions of the package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

# Package that may be absent -> the extra that brings it.
EXTRAS = {
    "PIL": "diffusers",
    "diffusers": "diffusers",
    "matplotlib": "cli",
    "pandas": "cli",
    "prdc": "evaluate",
    "rich": "cli",
    "torchmetrics": "evaluate",
    "transformers": "diffusers",
}


def refusal(impl: str, reasons: Sequence[str]) -> str:
    """The message of `Unsupported`."""
    return f"impl={impl!r} cannot serve this call: " + "; ".join(reasons)


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
        super().__init__(refusal(impl, self.reasons))

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


@contextlib.contextmanager
def naming_the_extra(what: str) -> Iterator[None]:
    """Let the error of an import say which extra brings the missing package; `what` needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        remedy = f"pip install 'entropy_attn[{EXTRAS[missing]}]'"
        message = f"{what}: expected {missing} to be installed: {remedy}"
        raise ModuleNotFoundError(message, name=error.name) from error
