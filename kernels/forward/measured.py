"""Configurations that won on a card, from the file beside this one; it has no rows for a card that was never at hand.

`benchmarks/kernels/tune.py` measures and writes the file. A row holds for calls in half precision without mask or
causality whose query, key and value share a head dim, and for lengths in the same powers of two as the measured ones.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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


def measured(target: str, head_dim: int, seqlen_q: int, seqlen_k: int, *, entropy: bool) -> Measured | None:
    """The row for a call; None where nothing like it was measured."""
    return table().get((target, head_dim, length_bucket(seqlen_q), length_bucket(seqlen_k), entropy))


@functools.cache
def table(path: Path = FILE) -> dict[Key, Measured]:
    """All rows, lengths by their buckets."""
    with path.open(newline="") as file:
        return {_key(row): _measured(row) for row in csv.DictReader(file)}


def _key(row: dict[str, str]) -> Key:
    seqlen_q, seqlen_k = (length_bucket(int(row[name])) for name in ("seqlen_q", "seqlen_k"))
    return row["target"], int(row["head_dim"]), seqlen_q, seqlen_k, row["entropy"] == "True"


def _measured(row: dict[str, str]) -> Measured:
    config = ForwardConfig(**{name: _value(row[name]) for name in CONFIG})
    return Measured(config, float(row["ms"]), float(row["torch_ms"]) if row["torch_ms"] else None)


def _value(text: str) -> Any:
    words: dict[str, Any] = {"True": True, "False": False, "": None}
    return words[text] if text in words else int(text) if text.isdigit() else text
