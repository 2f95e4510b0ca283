"""Parses a choice with options written as one line, such as the policy 'logn:strength=0.5:steps=0..10'."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

from entropy_attn.validation import expected

_TIMES = ("sigma", "timestep", "progress")  # see `Schedule`


def parse_scale(text: str) -> Any:
    """Parse 'name' or 'name:option=value:option=value' into a scale policy.

    Besides its parameters every policy takes steps=START..STOP, sigma=HIGH..LOW, timestep=HIGH..LOW,
    progress=START..STOP, layers=REGEX and of_branch=NAME. Other steps, times, layers and branches keep the default
    scale.

    A path that ends in .json is read by `LayerFactors`: 'profile/hold-entropy.json' is short for
    'factors:factors=profile/hold-entropy.json'.

    Args:
        text: a name of `entropy_attn.scale.POLICIES`, or the path of a .json file, with options.

    Returns:
        The policy.

    Raises:
        ValueError: an unknown name or option, or a value that the policy refuses; the message quotes `text`.
    """
    from entropy_attn.scale import POLICIES
    from entropy_attn.scale.combine import Layers, Steps
    from entropy_attn.scale.when import OfBranch, Schedule

    whole = re.sub(r"^\s*([^:]+\.json)(?=:|\s*$)", r"factors:factors=\1", text)
    policy, windows = parse_choice("scale", whole, POLICIES, also=("steps", *_TIMES, "layers", "of_branch"))
    if "steps" in windows:
        steps = windows["steps"]
        if not isinstance(steps, tuple):
            raise ValueError(f"scale {text!r}: {expected('steps', 'START..STOP, such as 0..10, 5.. or ..5', steps)}")
        with _named("scale", text):
            policy = Steps(policy, steps[0] or 0, steps[1])
    for of in (name for name in _TIMES if name in windows):
        if not isinstance(windows[of], tuple):
            raise ValueError(f"scale {text!r}: {expected(of, 'FIRST..LAST, such as 10..2.5, 5.. or ..5', windows[of])}")
        with _named("scale", text):
            policy = Schedule(policy, windows[of], cast(Any, of))
    if "layers" in windows:
        with _named("scale", text):
            policy = Layers({str(windows["layers"]): policy})
    if "of_branch" in windows:
        with _named("scale", text):
            policy = OfBranch(policy, windows["of_branch"])
    return policy


def parse_choice(
    what: str,
    text: str,
    choices: dict[str, Any],
    leave_out: Collection[str] = (),
    also: tuple[str, ...] = (),
    read: Mapping[str, Callable[[str], Any]] = MappingProxyType({}),
) -> tuple[Any, dict[str, Any]]:
    """The choice made with its options, and the options named in `also`; `read` parses options of special syntax."""
    name, *pairs = text.strip().split(":")
    if name not in choices:
        raise ValueError(f"{what}: expected one of {', '.join(choices)}, got {name!r}")
    fields = [field for field in dataclasses.fields(choices[name]) if field.name not in leave_out]
    allowed = [*(field.name for field in fields), *also]
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in allowed:
            raise ValueError(f"{what} {text!r}: expected option=value with one of {', '.join(allowed)}, got {pair!r}")
        if key in options:
            raise ValueError(f"{what} {text!r}: expected each option once, got {key} twice")
        with _named(what, text):
            options[key] = read.get(key, literal)(value)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in options]
    if needed:
        raise ValueError(f"{what} {text!r}: expected {' and '.join(f'{name}=...' for name in needed)}, got nothing")
    others = {key: options.pop(key) for key in also if key in options}
    with _named(what, text):
        return choices[name](**options), others


@contextlib.contextmanager
def _named(what: str, text: str) -> Iterator[None]:
    """Errors quote the text that they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} {text!r}: {error}") from error


def literal(text: str) -> Any:
    """A Python literal (number, bool, None, or a tuple written low..high, or low.. or ..high), else the text itself."""
    low, dots, high = text.partition("..")
    if dots:
        ends = literal(low or "none"), literal(high or "none")
        # "../profile.csv" is a path.
        return text if any(isinstance(end, (str, tuple)) for end in ends) else ends
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text
