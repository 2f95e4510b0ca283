"""The docstring of every public callable describes arguments, return value and errors."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("diffusers")

import entropy_attn as ea
from tests.support.docstrings import (
    CHECKS,
    constructor_of,
    entries,
    parameters_of,
    public_callables,
    public_modules,
    raised_by,
    returns_a_value,
    sections_of,
)

PUBLIC = public_callables(public_modules())


def lacks(value: object) -> list[str]:
    """What is missing in the docstring of a public callable."""
    if not inspect.getdoc(value):
        return ["a docstring"]
    if isinstance(value, property):
        return []
    missing = []
    if inspect.isclass(value):
        constructor = constructor_of(value)
        sections = sections_of(value, *constructor)
        made_here = constructor or hasattr(value, "__dataclass_fields__") or issubclass(value, tuple)
        parameters = parameters_of(value) if made_here else set()
        raised = set().union(*map(raised_by, constructor))
        named = entries(sections.get("Args", "")) | entries(sections.get("Attributes", ""))
    else:
        sections = sections_of(value)
        parameters, raised = parameters_of(value), raised_by(value)
        named = entries(sections.get("Args", ""))
        if returns_a_value(value) and not {"Returns", "Yields"} & set(sections):
            missing.append("Returns")
    missing += [f"Args: {name}" for name in sorted(parameters - named)]
    missing += [
        f"Args: {name}, which is no parameter" for name in sorted(set(entries(sections.get("Args", ""))) - parameters)
    ]
    missing += [f"Raises: {name}" for name in sorted(raised - entries(sections.get("Raises", "")))]
    return missing


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_arguments_results_and_errors_are_documented(name):
    assert not lacks(PUBLIC[name])


def test_the_test_sees_what_is_missing():
    def without(first: int, *rest: int) -> int:
        """Summary.

        Args:
            other: a parameter that does not exist.
        """
        if first:
            raise ValueError("first")
        ea.scale.constant.require_number("first", first)
        return first

    found = lacks(without)
    assert found == ["Returns", "Args: first", "Args: rest", "Args: other, which is no parameter", "Raises: ValueError"]
    assert CHECKS["checked_steps"] == {"TypeError", "ValueError"} and CHECKS["require_bool"] == {"TypeError"}
    assert {"attention", "scale.LogN", "scale.LogN.ratio", "guidance.TSAM.loss", "shapes.load_pipeline"} <= set(PUBLIC)
