"""Calls that torch.compile leaves out of its graphs.

A file of its own, imported where such a call is compiled: `torch.compiler.disable` imports the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(reason="entropy_attn: key groups and statistics of rows are no operator of a graph yet")
def untraced(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, outside of the graph."""
    return function(*arguments)
