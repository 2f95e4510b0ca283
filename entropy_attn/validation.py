"""Checks of arguments and settings: every refusal names the argument, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

Size = tuple[int, int]  # rows, columns


def require_bool(name: str, value: object) -> None:
    """Refuse what is true or false without being a bool, such as the text "no"."""
    if value is not True and value is not False:
        raise TypeError(f"{name}={value!r}: True or False is needed")


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


def checked_token_size(name: str, size: Any) -> Size | None:
    """A size in tokens, or None."""
    if size is None:
        return None
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size)
    ):
        raise ValueError(f"{name}={size!r}: a pair (rows, columns) of positive ints, in tokens, or None is needed")
    return size[0], size[1]


def checked_steps(steps: Any) -> frozenset[int] | None:
    """The steps to keep apart, or None."""
    if steps is None:
        return None
    if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
        raise TypeError(f"steps={steps!r}: step numbers, such as range(10) or (0, 24), or None are needed")
    chosen = list(steps)
    if any(isinstance(step, bool) or not isinstance(step, int) or step < 0 for step in chosen) or not chosen:
        raise ValueError(f"steps={steps!r}: whole numbers from 0, at least one, are needed")
    return frozenset(chosen)


def checked_prompt(prompt: Any) -> list[str]:
    """The prompts as a list."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (tuple, list)) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise TypeError(f"prompt={prompt!r}: a text, a list of them, or None is needed")
    return list(prompts)


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
