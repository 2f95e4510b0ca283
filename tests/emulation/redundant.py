"""Planted faults that change nothing that can be told, by name and with the reason."""

from __future__ import annotations

from typing import Any


def reason(mutant: Any) -> str:
    return ""
