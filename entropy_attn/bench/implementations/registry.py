"""All implementations by name. To add one, add a row to the file it belongs to; see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Iterable

from entropy_attn.bench.implementations.activated import ACTIVATED
from entropy_attn.bench.implementations.contract import Ask, Implementation
from entropy_attn.bench.implementations.flash_attention import FLASH_ATTENTION
from entropy_attn.bench.implementations.from_outputs import FROM_OUTPUTS
from entropy_attn.bench.implementations.ours import OURS
from entropy_attn.bench.implementations.packages import PACKAGES
from entropy_attn.bench.implementations.softmax import SOFTMAX
from entropy_attn.bench.implementations.torch_backends import TORCH

IMPLEMENTATIONS: dict[str, Implementation] = {
    one.name: one for one in (*OURS, *TORCH, *ACTIVATED, *FLASH_ATTENTION, *PACKAGES, *FROM_OUTPUTS, *SOFTMAX)
}
TORCHS_CHOICE = "sdpa"  # the implementation that leaves the choice of the backend to torch


def contenders(ask: Ask, names: Iterable[str] | None = None) -> list[Implementation]:
    """The implementations that have the task of `ask`, in the order of the registry.

    Args:
        ask: what a call computes.
        names: only these; None is all.

    Raises:
        ValueError: a name is not in the registry.
    """
    chosen = list(IMPLEMENTATIONS if names is None else names)
    unknown = next((name for name in chosen if name not in IMPLEMENTATIONS), None)
    if unknown is not None:
        raise ValueError(f"implementations: expected some of {', '.join(IMPLEMENTATIONS)}, got {unknown!r}")
    return [one for one in IMPLEMENTATIONS.values() if one.name in chosen and one.competes(ask)]
