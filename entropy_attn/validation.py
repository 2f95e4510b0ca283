"""Checks of the policies' settings, each of which names the setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from entropy_attn.ops.checks import require_bool as require_bool


def require_finite(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: a number is needed")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: a finite number is needed")


def require_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r} is needed")


def require_int(name: str, value: object, least: int, otherwise: str = "") -> None:
    """An integer; `otherwise` names what else is allowed, for the message."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: {otherwise}an integer is needed")
    if value < least:
        raise ValueError(f"{name}={value}: at least {least} is needed")


def checked_size(name: str, value: object) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}={value!r}: a pair (height, width) is needed")
    for length in value:
        if not isinstance(length, Integral) or isinstance(length, bool):
            raise TypeError(f"{name}={value!r}: a pair of integers is needed")
        if length < 1:
            raise ValueError(f"{name}={value!r}: both must be 1 at least")
    return value[0], value[1]


def require_policy(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name}={value!r}: a policy, called with a CallInfo, is needed; a number is Fixed(number)")


def checked_clamp(clamp: object) -> tuple[float | None, float | None]:
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        raise TypeError(f"clamp={clamp!r}: a pair (low, high) is needed, either of which may be None")
    for bound in clamp:
        if bound is not None:
            require_finite("clamp", bound)
    low, high = clamp
    # f is positive: a bound below zero would do nothing, or turn attention over
    if low is not None and low < 0:
        raise ValueError(f"clamp={clamp!r}: low must not be negative; None is no bound")
    if high is not None and not high > 0:
        raise ValueError(f"clamp={clamp!r}: high must be more than 0; None is no bound")
    if low is not None and high is not None and low > high:
        raise ValueError(f"clamp={clamp!r}: low must not exceed high")
    return low, high
