"""Checks of what maps are asked for with: a size, steps, prompts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from entropy_attn.recorders.map_sums import Size


def checked_size(name: str, size: Any) -> Size | None:
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
