"""TIFA: a network answers questions about an image; the share of right answers is the image's score.

Source: Hu et al., "TIFA: Accurate and Interpretable Text-to-Image Faithfulness Evaluation with Question Answering",
ICCV 2023, arXiv 2303.11897.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_attn.evaluation.prompt_sets import PromptSet, parse_json, read_text
from entropy_attn.pipelines.vqa import SentenceEncoder

TEXTS = ("id", "question", "answer")


@dataclass(frozen=True)
class Question:
    """A question about the image of one prompt.

    Attributes:
        question: the question.
        choices: the possible answers.
        answer: the right one of them.
        kind: what it asks about, such as "color"; TIFA's element_type.
    """

    question: str
    choices: tuple[str, ...]
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer to a question.

    Attributes:
        free: what the network said.
        choice: the choice it was mapped to; empty if none.
        right: whether that is the right one.
    """

    free: str
    choice: str
    right: bool


def read_questions(path: str | Path, prompts: PromptSet) -> dict[str, tuple[Question, ...]]:
    """Read TIFA's questions for a prompt set.

    Args:
        path: JSON, a list of {"id", "question", "choices", "answer", "element_type"}.
        prompts: the prompts; "id" is that of a prompt.

    Returns:
        {id: its questions}, for the prompts that have any. Questions about other prompts are left out.

    Raises:
        ValueError: the file is missing or has another form, a question has no right choice, or no question is about a
            prompt of the set.
    """
    path = Path(path)
    entries = parse_json(read_text(path), path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a JSON list of questions, got {type(entries).__name__}")
    found: dict[str, dict[str, Question]] = {}
    for number, entry in enumerate(entries):
        identifier, question = _question(entry, f"{path}: entry {number}")
        found.setdefault(identifier, {})[question.question] = question  # of equal questions the last one counts
    known = {item.id for item in prompts.items}
    chosen = {identifier: tuple(each.values()) for identifier, each in found.items() if identifier in known}
    if not chosen:
        example = next(iter(found), None)
        raise ValueError(
            f"{path}: expected questions about the prompts of {prompts.name}, whose ids are like "
            f"{prompts.items[0].id!r}, got ids like {example!r}"
        )
    return chosen


def _question(entry: Any, where: str) -> tuple[str, Question]:
    if not isinstance(entry, Mapping) or any(not isinstance(entry.get(key), str) for key in TEXTS):
        raise ValueError(f"{where}: expected an object with {', '.join(TEXTS)} and choices, got {entry!r}")
    choices = entry.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: choices: expected a list of texts, got {choices!r}")
    if entry["answer"] not in choices:
        raise ValueError(f"{where}: answer: expected one of {choices}, got {entry['answer']!r}")
    kind = str(entry.get("element_type", ""))
    return entry["id"], Question(entry["question"], tuple(choices), entry["answer"], kind)


def judged(free: str, question: Question, encoder: SentenceEncoder | None) -> Answer:
    """An answer mapped to the choices of its question.

    An answer that is one of the choices stays. Another one goes to the closest choice; without an encoder it counts as
    wrong, which makes scores lower than TIFA's.

    Args:
        free: the network's answer.
        question: the question.
        encoder: finds the closest choice; None needs an exact match.

    Returns:
        The answer.
    """
    choice = free
    if free not in question.choices:
        choice = "" if encoder is None else encoder.closest(free, question.choices)
    return Answer(free, choice, choice == question.answer)
