"""Checks of arguments and settings. Every message reads `name: expected …, got …`.

`require_*` returns nothing, `checked_*` returns the value in its normal form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

Size = tuple[int, int]  # rows, columns


def expected(name: str, what: str, value: object) -> str:
    """The message of a refusal."""
    return f"{name}: expected {what}, got {value!r}"


def is_int(value: object) -> bool:
    """An integer of any type, but no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_bool(name: str, value: object) -> None:
    """`True` or `False`, not merely something true or false such as the text "no"."""
    if value is not True and value is not False:
        raise TypeError(expected(name, "True or False", value))


def require_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """One of at least two choices."""
    if value not in choices:
        raise ValueError(expected(name, f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}", value))


def require_int(name: str, value: Any, least: int, otherwise: str = "") -> None:
    """An integer from `least`. `otherwise` names what else the caller allows, such as "None or "."""
    what = f"{otherwise}an integer >= {least}"
    if not is_int(value):
        raise TypeError(expected(name, what, value))
    if value < least:
        raise ValueError(expected(name, what, value))


def require_number(name: str, value: Any, least: float | None = None, above: float | None = None) -> None:
    """A finite number, from `least` or greater than `above`."""
    what = "a finite number"
    if least is not None:
        what += f" >= {least:g}"
    if above is not None:
        what += f" > {above:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(expected(name, what, value))
    if not math.isfinite(value) or (least is not None and value < least) or (above is not None and value <= above):
        raise ValueError(expected(name, what, value))


def require_callable(name: str, value: object, what: str) -> None:
    """Anything that can be called; `what` describes it."""
    if not callable(value):
        raise TypeError(expected(name, what, value))


def require_policy(name: str, value: object) -> None:
    """A scale policy. A bare number is refused with a hint."""
    if not callable(value):
        policy = expected(name, "a scale policy (CallInfo) -> scale", value)
        raise TypeError(f"{policy}; for a number use Fixed(number)")


def require_tensor(name: str, value: Any, floating: bool | None = None) -> None:
    """A tensor; `floating` demands a floating-point (True) or an integer dtype (False)."""
    what = {None: "a tensor", True: "a floating-point tensor", False: "an integer tensor"}[floating]
    if not isinstance(value, Tensor):
        raise TypeError(expected(name, what, value))
    if floating is not None and (value.is_floating_point() != floating or value.is_complex()):
        raise TypeError(f"{name}: expected {what}, got dtype {value.dtype}")


def checked_size(name: str, value: Any) -> Size:
    """(height, width) in pixels or latent cells."""
    what = "a pair (height, width) of integers >= 1"
    if not _is_pair(value) or not all(map(is_int, value)):
        raise TypeError(expected(name, what, value))
    if min(value) < 1:
        raise ValueError(expected(name, what, value))
    return value[0], value[1]


def checked_token_size(name: str, size: Any) -> Size | None:
    """(rows, columns) in tokens, or None."""
    if size is None:
        return None
    if not _is_pair(size) or not all(is_int(length) and length >= 1 for length in size):
        raise ValueError(expected(name, "None or a pair (rows, columns) of integers >= 1, in tokens", size))
    return size[0], size[1]


def checked_clamp(clamp: Any) -> tuple[float | None, float | None]:
    """(low, high), of which either may be None."""
    what = "a pair (low, high) with 0 <= low <= high and high > 0, either of which may be None"
    if not _is_pair(clamp):
        raise TypeError(expected("clamp", what, clamp))
    for bound in clamp:
        if bound is not None:
            require_number("clamp", bound)
    low, high = clamp
    # The factor is positive: a negative bound would have no effect or invert attention.
    if (low is not None and low < 0) or (high is not None and high <= 0):
        raise ValueError(expected("clamp", what, clamp))
    if low is not None and high is not None and low > high:
        raise ValueError(expected("clamp", what, clamp))
    return low, high


def checked_step_numbers(name: str, steps: Any) -> tuple[int, ...]:
    """Denoising steps counted from 0, sorted and each once; may be empty."""
    what = "integers >= 0, such as range(10) or (0, 24)"
    if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
        raise TypeError(expected(name, what, steps))
    chosen = tuple(steps)
    if not all(is_int(step) and step >= 0 for step in chosen):
        raise ValueError(expected(name, what, steps))
    return tuple(sorted(set(chosen)))


def checked_steps(steps: Any) -> frozenset[int] | None:
    """At least one denoising step counted from 0, or None."""
    if steps is None:
        return None
    chosen = checked_step_numbers("steps", steps)
    if not chosen:
        raise ValueError(expected("steps", "None or at least one integer >= 0", steps))
    return frozenset(chosen)


def checked_prompt(prompt: Any) -> list[str]:
    """The prompts as a list."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (tuple, list)) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise TypeError(expected("prompt", "None, a string or a list of at least one string", prompt))
    return list(prompts)


def checked_positions(name: str, positions: Any, length: int) -> list[int]:
    """Positions in a text of `length` tokens, from a sequence or a 1-d tensor."""
    what = f"positions in the text, integers from 0 to {length - 1}"
    if isinstance(positions, Tensor):
        require_tensor(name, positions, floating=False)
        positions = positions.tolist()
    if isinstance(positions, (str, bytes)) or not isinstance(positions, Sequence):
        raise TypeError(expected(name, what, positions))
    if not all(map(is_int, positions)):
        raise TypeError(expected(name, what, positions))
    if not all(0 <= position < length for position in positions):
        raise ValueError(expected(name, what, positions))
    return list(positions)


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2
