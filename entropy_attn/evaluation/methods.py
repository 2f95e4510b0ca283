"""Guidances for many prompts at once: each prompt has its words, from its objects or from the grammar of `shapes`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from entropy_attn.guidance import CONFORM, TSAM, AttendAndExcite, SynGen
from entropy_attn.guidance.method import Custom, Guidance, Prompt
from entropy_attn.prompts import Text
from entropy_attn.shapes.words import objects
from entropy_attn.validation import require_one_of

METHODS = ("tsam", "attend-and-excite", "conform", "syngen")
NEEDS_WORDS = METHODS[1:]
ARTICLES = frozenset(("a", "an", "the"))


class ObjectWords(NamedTuple):
    """The positions of the words of one object in the encoded text."""

    attributes: tuple[int, ...]
    noun: tuple[int, ...]


WordsOf = Callable[[Text], list[ObjectWords]]


def of_shapes(text: Text) -> list[ObjectWords]:
    """The color and the shape of each object, by the grammar of `shapes`."""
    return [ObjectWords(color, shape) for _, color, shape in objects(text)]


def of_phrases(phrases: dict[str, tuple[str, ...]]) -> WordsOf:
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


def method(name: str, options: dict[str, Any], words_of: WordsOf | None) -> Guidance:
    """A guidance by name.

    Args:
        name: one of `METHODS`.
        options: its settings, such as alpha.
        words_of: the words of each object of a prompt; every method but T-SAM needs them.

    Returns:
        The guidance.

    Raises:
        ValueError: the name is unknown, or the method needs words that are not known.
    """
    require_one_of("guidance", name, METHODS)
    if name == "tsam":
        return TSAM(**options)
    if words_of is None:
        raise ValueError(
            f"guidance: {name} needs the words of each object, which {'the prompts do'} not have: give --objects, or "
            "take a prompt set that has them"
        )
    known = words_of
    if name == "attend-and-excite":
        return by_prompt(lambda text: AttendAndExcite(tokens=_nouns(known(text)), thresholds={}, **options), options)
    if name == "conform":
        return by_prompt(lambda text: CONFORM(groups=_groups(known(text)), **options), options, CONFORM)
    return by_prompt(lambda text: SynGen(pairs=_pairs(known(text)), **options), options, SynGen)


def by_prompt(
    make: Callable[[Text], Guidance | None], settings: dict[str, Any], like: type[Guidance] = Guidance
) -> Custom:
    """A guidance whose words differ from prompt to prompt, for a batch of several prompts.

    Args:
        make: from a prompt to its guidance, of which only the loss is used; None where the prompt cannot be guided.
        settings: those of `Guidance`, such as alpha; others are for `make`.
        like: the class whose defaults the settings have.

    Returns:
        The guidance.
    """
    made = cache(lambda prompt, text: make(text))

    def loss(maps: Tensor, prompt: Prompt) -> Tensor:
        guidance = made(prompt.text.prompt, prompt.text)
        return maps.sum() * 0.0 if guidance is None else guidance.loss(maps, prompt)

    names = ("alpha", "steps", "step_range", "refine_at", "refine_iters", "map_size")
    defaults = {name: getattr(like, name) for name in names}
    return Custom(function=loss, **defaults | {name: settings[name] for name in names if name in settings})
