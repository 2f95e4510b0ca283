"""Captions whose words and objects are known: from the grammar of shapes, from templates, from a file of prompts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from entropy_attn.shapes.scenes import COLOURS, random_request

COLORS = ("red", "green", "blue", "yellow", "purple", "brown", "black", "white", "pink", "gray")
NOUNS = ("bear", "bird", "car", "boat", "chair", "table", "book", "cup", "dog", "cat", "horse", "clock", "bus", "train",
         "bag", "hat", "shirt", "house", "door", "bench", "bowl", "cow", "sheep", "truck")  # fmt: skip
ADJECTIVES = ("large", "small", "old", "new", "shiny", "heavy", "strange", "cheap")
# Other prompts name more colors.
READ_COLORS = (*COLORS, "orange", "gold", "silver", "grey", "violet", "cyan", "beige", "turquoise", "maroon")


@dataclass(frozen=True)
class Caption:
    """A caption and its objects.

    Args:
        words: its words; a punctuation mark is a word.
        objects: for each object the index of its color and of its noun; of a noun of two words the last one.
    """

    words: tuple[str, ...]
    objects: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def shuffled(self) -> Caption:
        """The same words in another order, fixed for each caption; the objects keep their words."""
        order = list(range(len(self.words)))
        random.Random(self.text).shuffle(order)
        words = tuple(self.words[index] for index in order)
        return Caption(words, tuple((order.index(color), order.index(noun)) for color, noun in self.objects))


def near(color: str, noun: str, adjective: str) -> str:
    """The color is the word before the noun."""
    return f"a {color} {noun}"


def far(color: str, noun: str, adjective: str) -> str:
    """The color is three words before the noun, and the color of the next object three words after it."""
    return f"a {color} and {adjective} {noun}"


def after(color: str, noun: str, adjective: str) -> str:
    """The color is three words after the noun, and the color of the object before three words before it."""
    return f"a {noun} that is {color}"


TEMPLATES: dict[str, Callable[[str, str, str], str]] = {"near": near, "far": far, "after": after}


def from_template(form: str, total: int, seed: int = 0) -> list[Caption]:
    """Captions of three objects with different colors and nouns; with one seed, all forms name the same objects.

    Args:
        form: a key of `TEMPLATES`.
        total: how many.
        seed: of the objects.
    """
    rng, captions = random.Random(seed), []
    for _ in range(total):
        kinds = zip(*(rng.sample(words, 3) for words in (COLORS, NOUNS, ADJECTIVES)), strict=True)
        captions.append(_joined([TEMPLATES[form](*kind) for kind in kinds]))
    return captions


def _joined(phrases: list[str]) -> Caption:
    words = _words(", ".join(phrases[:-1]) + " and " + phrases[-1])
    colors, nouns = ([i for i, word in enumerate(words) if word in known] for known in (COLORS, NOUNS))
    return Caption(words, tuple(zip(colors, nouns, strict=True)))


def of_shapes(total: int, seed: int = 0) -> list[Caption]:
    """Different captions of the grammar of shapes that name two or three kinds of different colors."""
    rng, found = random.Random(seed), {}
    while len(found) < total:
        request = random_request(rng)
        if len(request.kinds) > 1 and len({kind.colour for kind in request.kinds}) == len(request.kinds):
            words = _words(request.caption())
            objects = tuple((i, i + 1) for i, word in enumerate(words) if word in COLOURS)
            found[words] = Caption(words, objects)
    return list(found.values())


def from_file(path: Path) -> list[Caption]:
    """The prompts "a <color> <noun> and a <color> <noun>" of a file with a prompt, or a JSON object with one, a line.

    Args:
        path: such as T2I-CompBench's color.txt or GenEval's evaluation_metadata.jsonl; "a photo of" may come before.

    Raises:
        ValueError: it has no such prompt.
    """
    colors = "|".join(READ_COLORS)
    pattern = re.compile(
        rf"(?:a photo of )?an? ({colors}) ([a-z]+(?: [a-z]+)?) and an? ({colors}) ([a-z]+(?: [a-z]+)?)"
    )
    found = {}
    for prompt in _prompts(path):
        match = pattern.fullmatch(prompt)
        if match is None or match[1] == match[3]:
            continue
        words = _words(prompt)
        first = 3 if prompt.startswith("a photo of") else 0
        objects, at = [], first + 1
        for noun in (match[2], match[4]):
            last = at + len(noun.split())
            objects.append((at, last))
            at = last + 3  # past "and" and the article
        found[words] = Caption(words, tuple(objects))
    if not found:
        raise ValueError(f"prompts: expected a file with prompts like 'a red book and a blue cup', got {str(path)!r}")
    return list(found.values())


def _prompts(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"] if path.suffix == ".jsonl" else line
        yield prompt.strip().rstrip(".").lower()


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+|[^\w\s]", text))
