"""Policies, and other choices with settings, as a line of text: 'logn:strength=0.5:steps=0..10'."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any


def parse_scale(text: str) -> Any:
    """'name' or 'name:option=value:option=value' to a scale policy.

    Every policy takes steps=START..STOP and layers=REGEX besides its own options; the rest keeps the model's own scale.
    """
    from entropy_attn.scale import POLICIES
    from entropy_attn.scale.combine import Layers, Steps

    policy, windows = parse_choice("scale", text, POLICIES, also=("steps", "layers"))
    if "steps" in windows:
        steps = windows["steps"]
        if not isinstance(steps, tuple):
            raise ValueError(f"scale {text!r}: steps={steps} is not START..STOP, such as 0..10, 5.. or ..5")
        with _named("scale", text):
            policy = Steps(policy, steps[0] or 0, steps[1])
    if "layers" in windows:
        with _named("scale", text):
            policy = Layers({str(windows["layers"]): policy})
    return policy


def parse_choice(
    what: str,
    text: str,
    choices: dict[str, Any],
    leave_out: Collection[str] = (),
    also: tuple[str, ...] = (),
    read: Mapping[str, Callable[[str], Any]] = MappingProxyType({}),
) -> tuple[Any, dict[str, Any]]:
    """The choice with its options, and those of its options that are in `also`. `read` is for those with own syntax."""
    name, *pairs = text.strip().split(":")
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}: give one of {', '.join(choices)}")
    fields = [field for field in dataclasses.fields(choices[name]) if field.name not in leave_out]
    allowed = [*(field.name for field in fields), *also]
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in allowed:
            raise ValueError(f"{what} {text!r}: {pair!r} is not option=value with one of {', '.join(allowed)}")
        if key in options:
            raise ValueError(f"{what} {text!r}: {key} is given twice")
        with _named(what, text):
            options[key] = read.get(key, literal)(value)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in options]
    if needed:
        raise ValueError(f"{what} {text!r}: give {' and '.join(f'{name}=...' for name in needed)}")
    others = {key: options.pop(key) for key in also if key in options}
    with _named(what, text):
        return choices[name](**options), others


@contextlib.contextmanager
def _named(what: str, text: str) -> Iterator[None]:
    """Refusals say which option they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} {text!r}: {error}") from error


def literal(text: str) -> Any:
    """A Python literal (number, bool, None, or a tuple written low..high, or low.. or ..high), else the text itself."""
    low, dots, high = text.partition("..")
    if dots:
        ends = literal(low or "none"), literal(high or "none")
        # but "../profile.csv" is a path
        return text if any(isinstance(end, (str, tuple)) for end in ends) else ends
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text
