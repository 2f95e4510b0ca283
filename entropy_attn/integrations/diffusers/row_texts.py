"""The text that each row of a denoiser's batch is conditioned on, found by comparison with the encoded texts."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from entropy_attn.recorders.base import Prompt

# Texts of a batch: (rows, positions, width), or a list of (positions, width) where their lengths differ
States = torch.Tensor | list[torch.Tensor]


@dataclass(frozen=True)
class Encoded:
    """What one call of a pipeline's `encode_prompt` received and returned.

    names: the arguments of the pipeline's call that are this text, see `PipelineRun.names_of`; () outside of a call.
    prompts: the texts, one per part where the tokenizers' texts differ; None for embeddings.
    guided: whether classifier-free guidance was requested; None where that is no argument.
    text, negative: the encoded text, and the negative one that came with it.
    """

    names: tuple[str, ...]
    prompts: list[Prompt] | None
    guided: bool | None
    text: States | None
    negative: States | None


def encoded_states(result: Any) -> tuple[States | None, States | None]:
    """The text and the negative text in what `encode_prompt` returns, between masks, pooled texts and positions.

    All pipelines of diffusers return the text first, and the negative one after it.
    """
    items = list(result) if isinstance(result, tuple) else [result]
    text, *others = map(as_states, items) if items else [None]
    if isinstance(text, torch.Tensor):
        alike = (each for each in others if isinstance(each, torch.Tensor) and each.shape[-1] == text.shape[-1])
        return text, next(alike, None)
    return text, next((each for each in others if isinstance(each, list)), None)


def as_states(value: Any) -> States | None:
    """`value` if it is the texts of a batch that is not empty."""
    if isinstance(value, torch.Tensor):
        return value if value.dim() >= 3 and value.is_floating_point() and len(value) else None
    if isinstance(value, list) and value and all(isinstance(each, torch.Tensor) for each in value):
        return value
    return None


@dataclass(frozen=True)
class Match:
    """A row is the `index`-th of the `count` rows that were encoded for `role`."""

    role: str
    index: int
    count: int


def matches(states: States, known: Sequence[tuple[str, States]]) -> list[frozenset[Match]]:
    """What every row of the batch may be; empty for a row that was not encoded. Waits for the device once."""
    found: list[set[Match]] = [set() for _ in range(len(states))]
    candidates: list[Match] = []
    answers: list[torch.Tensor] = []
    for role, texts in known:
        for index, text in enumerate(texts):
            match = Match(role, index, len(texts))
            if isinstance(states, torch.Tensor):
                if text.shape == states.shape[1:]:
                    candidates.append(match)
                    answers.append((states == text.to(states)).flatten(1).all(1))
                continue
            for row, state in enumerate(states):
                if state is text or _equal(state, text):
                    found[row].add(match)
    if answers:
        for match, rows in zip(candidates, torch.stack(answers).tolist(), strict=True):
            for row, same in enumerate(rows):
                if same:
                    found[row].add(match)
    return [frozenset(each) for each in found]


def label_matches(labels: torch.Tensor, null: int) -> list[frozenset[Match]]:
    """The same as `matches`, for class labels, where one number stands for no class."""
    values = labels.tolist()
    wanted = [value for value in values if value != null]
    counts = {"cond": len(wanted), "uncond": len(values) - len(wanted)}
    seen = {"cond": 0, "uncond": 0}
    found = []
    for value in values:
        role = "uncond" if value == null else "cond"
        found.append(frozenset({Match(role, seen[role], counts[role])}))
        seen[role] += 1
    return found


def same_text(states: States) -> bool:
    """Whether all rows are of one text."""
    if len(states) < 2:
        return True
    if isinstance(states, torch.Tensor):
        return bool((states == states[:1]).all())
    return all(_equal(state, states[0]) for state in states[1:])


def same_rows(one: States, other: States) -> bool:
    """Whether two batches, of texts or of latents, begin with the same row."""
    return one is other or _equal(one[0], other[0])


class Remembered:
    """A result for one batch of texts, valid while the pipeline passes the same unchanged tensor."""

    def __init__(self) -> None:
        self._of: tuple[Any, int] | None = None
        self.value: Any = None

    def holds(self, states: States) -> bool:
        return self._of is not None and self._of[0]() is states and self._of[1] == _version(states)

    def keep(self, states: States, value: Any) -> Any:
        # A list is made anew for every call, so two of them cannot be distinguished.
        self._of = (weakref.ref(states), _version(states)) if isinstance(states, torch.Tensor) else None
        self.value = value
        return value


def _version(states: States) -> int:
    return states._version if isinstance(states, torch.Tensor) and not states.is_inference() else 0


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and bool((one == other.to(one)).all()))
