"""Guidances for many prompts at once: each prompt has its words, from its objects or from the grammar of `shapes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from entropy_attn.guidance import CONFORM, JEDI, TSAM, AttendAndExcite, SynGen
from entropy_attn.guidance.compared import Word, parsed_pairs
from entropy_attn.guidance.method import Custom, Guidance, Prompt
from entropy_attn.prompts import Text
from entropy_attn.shapes.words import objects

ANY = (1, 2)  # words that those of each prompt take the place of


@dataclass(frozen=True, kw_only=True)
class _AttendAndExcite(AttendAndExcite):
    """Without thresholds, which wait for one guidance that all prompts have in common."""

    tokens: Sequence[Word] = ANY
    thresholds: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _CONFORM(CONFORM):
    groups: Sequence[Sequence[Word]] = (ANY,)


@dataclass(frozen=True, kw_only=True)
class _JEDI(JEDI):
    groups: Sequence[Sequence[Word]] = (ANY,)


@dataclass(frozen=True, kw_only=True)
class _SynGen(SynGen):
    pairs: Sequence[tuple[Word, Word]] | None = (ANY,)


METHODS: dict[str, type[Guidance]] = {
    "tsam": TSAM,
    "attend-and-excite": _AttendAndExcite,
    "conform": _CONFORM,
    "jedi": _JEDI,
    "syngen": _SynGen,
}
# What comes from the prompts, or is a function
NOT_OPTIONS = frozenset(("target", "tokens", "thresholds", "groups", "pairs"))
ARTICLES = frozenset(("a", "an", "the"))


class ObjectWords(NamedTuple):
    """The positions of the words of one object in the encoded text."""

    attributes: tuple[int, ...]
    noun: tuple[int, ...]


WordsOf = Callable[[Text], list[ObjectWords]]


def words_of_shapes(text: Text) -> list[ObjectWords]:
    """The color and the shape of each object, by the grammar of `shapes`."""
    return [ObjectWords(color, shape) for _, color, shape in objects(text)]


def words_of_phrases(phrases: Mapping[str, tuple[str, ...]]) -> WordsOf:
    """The words of the objects that a prompt set names.

    The last word of a phrase is its noun, the others are its attributes, without articles: "a red bear" has the noun
    "bear" and the attribute "red".

    Args:
        phrases: {prompt: a phrase for each object}.

    Returns:
        A function from the encoded prompt to the words of its objects. It raises ValueError where a word is not in it.
    """

    def words_of(text: Text) -> list[ObjectWords]:
        found = []
        for phrase in phrases[text.prompt]:
            *others, noun = phrase.split()
            attributes = [p for word in others if word.lower() not in ARTICLES for p in text.find(word).positions]
            found.append(ObjectWords(tuple(attributes), text.find(noun).positions))
        return found

    return words_of


def guidance_for(example: Guidance, words_of: WordsOf | None) -> Guidance:
    """A guidance for prompts whose words differ.

    Args:
        example: the method with its settings; its words are replaced by those of each prompt. T-SAM needs none.
        words_of: the words of each object of a prompt; None if they are not known. SynGen then parses the prompts.

    Returns:
        The guidance.

    Raises:
        ImportError: SynGen needs spaCy, which is not installed.
        ValueError: the method needs words, and they are not known.
    """
    if isinstance(example, TSAM):
        return example
    if words_of is None and isinstance(example, SynGen):
        parsed_pairs("a red circle")  # raises here, and not in the first guided step, where spaCy is missing
        return replace(example, pairs=None)
    if words_of is None:
        name = next(name for name, kind in METHODS.items() if isinstance(example, kind))
        raise ValueError(
            f"guidance: {name} needs the objects of every prompt: expected a prompt set that names them, --objects, "
            "--split-at, or captions of shapes, got none"
        )
    known = words_of
    if isinstance(example, AttendAndExcite):
        return by_prompt(example, lambda text: {"tokens": nouns(known(text))})
    if isinstance(example, (CONFORM, JEDI)):
        return by_prompt(example, lambda text: {"groups": [words.attributes + words.noun for words in known(text)]})
    return by_prompt(example, lambda text: {"pairs": pairs(known(text))})


def nouns(words: list[ObjectWords]) -> list[int]:
    """The positions of the nouns, each once."""
    return list(dict.fromkeys(position for each in words for position in each.noun))


def pairs(words: list[ObjectWords]) -> list[tuple[int, int]]:
    """(attribute, noun) of each object; a token of each."""
    return [(attribute, noun) for each in words for attribute in each.attributes for noun in each.noun]


@dataclass(frozen=True, kw_only=True)
class _ByPrompt(Custom):
    """Moves the latents as `example` does."""

    example: Guidance

    def direction(self, gradient: Tensor, prompts: Sequence[Prompt], number: int) -> Tensor:
        return self.example.direction(gradient, prompts, number)


def by_prompt(example: Guidance, words: Callable[[Text], dict[str, Any]]) -> Custom:
    """A guidance whose words differ from prompt to prompt, for a batch of several prompts.

    Args:
        example: the method with its settings.
        words: from a prompt to the fields of `example` that differ. A prompt for which one of them is empty is not
            guided.

    Returns:
        A `Custom` with the settings of `example`, without its thresholds.
    """

    @cache
    def made(prompt: str, text: Text) -> Guidance | None:
        found = words(text)
        return replace(example, **found) if all(found.values()) else None

    def loss(maps: Tensor, prompt: Prompt) -> Tensor:
        guidance = made(prompt.text.prompt, prompt.text)
        return maps.sum() * 0.0 if guidance is None else guidance.loss(maps, prompt)

    settings = {each.name: getattr(example, each.name) for each in fields(Guidance)}
    return _ByPrompt(function=loss, example=example, **settings)
