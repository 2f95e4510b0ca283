"""Checks of what the functions of guidance are given, each of which names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from entropy_attn.validation import require_bool as require_bool
from entropy_attn.validation import require_finite
from entropy_attn.validation import require_int as require_int


def require_number(name: str, value: Any, least: float | None = None) -> None:
    require_finite(name, value)
    if least is not None and value < least:
        raise ValueError(f"{name}={value!r}: a finite number from {least:g} is needed")


def require_tensor(name: str, value: Any, floating: bool | None = None) -> None:
    """A tensor; `floating` says whether of floating-point or of whole numbers, where only one will do."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}={value!r}: a tensor is needed")
    if floating is not None and (value.is_floating_point() != floating or value.is_complex()):
        raise TypeError(f"{name} of {value.dtype}: {'a floating-point' if floating else 'an integer'} dtype is needed")


def checked_positions(name: str, places: Any, length: int) -> list[int]:
    """Positions in a text of this length, from a sequence of them or a 1-d tensor."""
    if isinstance(places, Tensor):
        require_tensor(name, places, floating=False)
        places = places.tolist()
    if isinstance(places, (str, bytes)) or not isinstance(places, (Sequence, range)):
        raise TypeError(f"{name}={places!r}: positions in the text are needed, as a list or a 1-d tensor")
    if any(isinstance(place, bool) or not isinstance(place, Integral) for place in places):
        raise TypeError(f"{name}={places!r}: positions are whole numbers")
    if any(not 0 <= place < length for place in places):
        raise ValueError(f"{name}={list(places)}: positions from 0 to {length - 1} are needed")
    return list(places)
