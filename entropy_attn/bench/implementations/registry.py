"""Everything that competes, by name. Adding one is a row in the file it belongs to: see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Iterable

from entropy_attn.bench.implementations.contract import Ask, Implementation
from entropy_attn.bench.implementations.ours import OURS
from entropy_attn.bench.implementations.packages import PACKAGES
from entropy_attn.bench.implementations.softmax import SOFTMAX
from entropy_attn.bench.implementations.torch_backends import TORCH

IMPLEMENTATIONS: dict[str, Implementation] = {i.name: i for i in (*OURS, *TORCH, *PACKAGES, *SOFTMAX)}
TORCHS_CHOICE = "sdpa"


def contenders(ask: Ask, names: Iterable[str] | None = None) -> list[Implementation]:
    """Those that are made for what is asked, of ``names`` or of all, in the registry's order.

    Raises:
        ValueError: for a name that is not registered.
    """
    chosen = list(IMPLEMENTATIONS if names is None else names)
    unknown = next((name for name in chosen if name not in IMPLEMENTATIONS), None)
    if unknown is not None:
        raise ValueError(f"unknown implementation {unknown!r}: give some of {', '.join(IMPLEMENTATIONS)}")
    return [i for i in IMPLEMENTATIONS.values() if i.name in chosen and i.competes(ask)]
