"""Where the words of the prompt are among the text tokens, for policies that treat words differently."""

from __future__ import annotations

from collections.abc import Sequence

from entropy_attn.prompts import JoinedText, TextPart
from entropy_attn.validation import expected, is_int

Words = str | int | tuple[int, ...]  # words of the prompt in a row, or positions in the text


def checked_words(name: str, words: object) -> Words:
    """Words in a row, one position, or several positions in the text."""
    what = "words of the prompt, or positions in the text from 0"
    if isinstance(words, str):
        if not words.strip():
            raise ValueError(expected(name, what, words))
        return words
    positions = words if isinstance(words, (tuple, list, range)) else (words,)
    if not positions or not all(is_int(position) for position in positions):
        raise TypeError(expected(name, what, words))
    if min(positions) < 0:
        raise ValueError(expected(name, what, words))
    return tuple(positions)


class PromptWords:
    """The text of the generation that runs, and the positions of words in it."""

    def __init__(self, name: str):
        """name: of the argument that has the words, for messages."""
        self._name = name
        self._parts: tuple[TextPart, ...] = ()
        self._prompts: Sequence[str | tuple[str, ...]] | None = None
        self._texts: dict[int, JoinedText] = {}

    def attach(self, parts: tuple[TextPart, ...], words: Sequence[Words]) -> None:
        """Take the parts of the text that layers attend to."""
        needed = [each for each in words if isinstance(each, str)]
        if needed and not any(part.tokenizer is not None for part in parts):
            raise ValueError(
                f"{self._name}: {needed[0]!r} needs the pipeline's tokenizer; there is none, or the positions of its "
                "words are not known: give positions in the text, such as (2, 3)"
            )
        self._parts, self._prompts, self._texts = parts, None, {}

    def begin(self, prompts: Sequence[str | tuple[str, ...]] | None) -> None:
        """A generation begins, with these prompts; None if they are not known."""
        self._prompts, self._texts = prompts, {}

    def positions(self, words: Words, length: int) -> tuple[int, ...]:
        """The positions of words in a text of `length` tokens."""
        if not isinstance(words, str):
            positions = words if isinstance(words, tuple) else (words,)
            if max(positions) >= length:
                raise ValueError(f"{self._name}: expected positions below {length}, the tokens of text, got {words!r}")
            return positions
        return self._text(length).find(words).positions

    def _text(self, length: int) -> JoinedText:
        if length not in self._texts:
            different = set(self._prompts or ())
            if not different:
                raise ValueError(f"{self._name}: the prompt is not known, so neither are its words: give positions")
            if len(different) > 1:
                raise ValueError(f"{self._name}: expected one prompt for all images of a batch, got {len(different)}")
            self._texts[length] = JoinedText(different.pop(), self._parts, length)
        return self._texts[length]
