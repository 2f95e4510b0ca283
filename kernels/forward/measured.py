"""Configurations that won on a card, from the file beside this one.

`benchmarks/kernels/tune.py` measures and writes the file. A row holds for calls in half precision without mask or
causality whose query, key and value share a head dim, and for lengths in the same powers of two as the measured ones.
A card of which there is no such row takes that of another card with the same target, with a warning.
"""

from __future__ import annotations

import csv
import functools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .configs import ForwardConfig

FILE = Path(__file__).with_name("measured.csv")
KEY = ("target", "head_dim", "seqlen_q", "seqlen_k", "entropy")
CONFIG = tuple(field.name for field in fields(ForwardConfig))
COLUMNS = (*KEY, *CONFIG, "ms", "torch_ms", "device", "triton", "torch", "commit", "date")

Key = tuple[str, int, int, int, bool]


@dataclass(frozen=True)
class Measured:
    """The fastest configuration of one shape; `torch_ms` of torch's choice is None where it has no such call."""

    config: ForwardConfig
    ms: float
    torch_ms: float | None

    @property
    def faster_than_torch(self) -> bool:
        return self.torch_ms is not None and self.ms < self.torch_ms


def length_bucket(seqlen: int) -> int:
    """Lengths 2**(b-1) < n <= 2**b share bucket b."""
    return max(0, seqlen - 1).bit_length()


def measured(target: str, card: str, head_dim: int, seqlen_q: int, seqlen_k: int, *, entropy: bool) -> Measured | None:
    """The row of `card` for a call, else that of the nearest card; None where nothing like the call was measured."""
    by_card = table().get((target, head_dim, length_bucket(seqlen_q), length_bucket(seqlen_k), entropy))
    if not by_card:
        return None
    if card not in by_card:
        other = nearest(card, by_card)
        _say_once(card, other)
        return by_card[other]
    return by_card[card]


@functools.cache
def card_name(device: torch.device) -> str:
    """The name of a device as in the file; without a card, the type of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def nearest(card: str, others: Iterable[str]) -> str:
    """The card whose name has the most words in common with this one; the first of those that have equally many."""
    words = set(card.split())
    return max(others, key=lambda other: len(words & set(other.split())))


def cards(target: str) -> list[str]:
    """The cards of which there are rows for a target."""
    return sorted({card for key, by_card in table().items() if key[0] == target for card in by_card})


@functools.cache
def _say_once(card: str, other: str) -> None:
    warnings.warn(
        f"no configuration was measured on {card}: using one that was the fastest on {other} "
        "(python -m benchmarks.kernels.tune measures those of your card)",
        stacklevel=3,
    )


@functools.cache
def table(path: Path = FILE) -> dict[Key, dict[str, Measured]]:
    """All rows, lengths by their buckets: {shape: {card: row}}."""
    found: dict[Key, dict[str, Measured]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(_key(row), {})[row["device"]] = _measured(row)
    return found


def _key(row: dict[str, str]) -> Key:
    seqlen_q, seqlen_k = (length_bucket(int(row[name])) for name in ("seqlen_q", "seqlen_k"))
    return row["target"], int(row["head_dim"]), seqlen_q, seqlen_k, row["entropy"] == "True"


def _measured(row: dict[str, str]) -> Measured:
    config = ForwardConfig(**{name: _value(row[name]) for name in CONFIG})
    return Measured(config, float(row["ms"]), float(row["torch_ms"]) if row["torch_ms"] else None)


def _value(text: str) -> Any:
    words: dict[str, Any] = {"True": True, "False": False, "": None}
    return words[text] if text in words else int(text) if text.isdigit() else text
