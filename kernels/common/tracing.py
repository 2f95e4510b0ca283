"""What torch.compile has to know about this package's functions, without importing the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)


def constant_in_graphs(function: F) -> F:
    """Torch.compile calls `function` while tracing, and takes what it returns as a constant.

    This is `torch.compiler.assume_constant_result`, which would import the compiler: a second for everyone who imports
    this package.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
