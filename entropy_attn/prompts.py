"""Which positions of the encoded text belong to which word of the prompt, by the pipeline's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from entropy_attn.validation import require_bool

_MARKS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


@dataclass(frozen=True)
class Choice:
    """A chosen part of the text: a label, and the positions whose maps are averaged."""

    label: str
    positions: tuple[int, ...]


class Text:
    """One prompt as the text encoder gets it, cut and padded to the tokenizer's full length, or to `length`.

    The words of a `prefix`, which the pipeline puts before the prompt, are none of the prompt.

    Attributes:
        prompt: the prompt.
        ids: the token at each position.
        real: the positions that are words of the prompt, not start and end marks or padding.
        outer: the first and the last position of a text that begins with a start mark, which gets most of the
            attention; () for T5, whose text begins with a word.
        words: the words of the prompt with their positions, in order; a word may be several tokens.
    """

    def __init__(self, prompt: str, tokenizer: Any, length: int | None = None, prefix: str = ""):
        # As pipelines call it, so that the positions are the same, whichever side is padded.
        length = tokenizer.model_max_length if length is None else length
        encoded = tokenizer(prefix + prompt, padding="max_length", max_length=length, truncation=True)
        marks = {getattr(tokenizer, name, None) for name in _MARKS}
        self.prompt = prompt
        self.ids: list[int] = list(encoded["input_ids"])
        first = _shared(self.ids, tokenizer(prefix)["input_ids"]) if prefix else 0
        self.real = tuple(
            position
            for position, (token, used) in enumerate(zip(self.ids, encoded["attention_mask"], strict=True))
            if used and token not in marks and position >= first
        )
        begins = {getattr(tokenizer, name, None) for name in ("bos_token_id", "cls_token_id")}
        self.outer = (0, len(self.ids) - 1) if self.ids and self.ids[0] in begins else ()
        self._tokenizer = tokenizer
        self.words = [Choice(self._decode(positions), positions) for positions in self._word_positions()]

    def __len__(self) -> int:
        return len(self.ids)

    def token(self, position: int) -> Choice:
        """One position by itself."""
        return Choice(self._decode((position,)), (position,))

    def find(self, word: str) -> Choice:
        """Every occurrence of this word, or of these words in a row; a ValueError if there is none."""
        # After a space too, where that makes another token of a word than the beginning of a text does.
        spellings = {tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (word, f" {word}")}
        starts = {choice.positions[0] for choice in self.words}
        ends = {choice.positions[-1] for choice in self.words}
        found: set[int] = set()
        for wanted in spellings - {()}:
            for first in range(len(self.real) - len(wanted) + 1):
                positions = self.real[first : first + len(wanted)]  # a long text may have marks between two words
                if positions[0] in starts and positions[-1] in ends and tuple(self.ids[p] for p in positions) == wanted:
                    found.update(positions)
        if not found:
            words = ", ".join(repr(choice.label) for choice in self.words) or "none"
            raise ValueError(f"tokens: {word!r} is not in the prompt {self.prompt!r}, whose words are {words}")
        return Choice(word, tuple(sorted(found)))

    def _word_positions(self) -> list[tuple[int, ...]]:
        groups: list[list[int]] = []
        pieces = self._tokenizer.convert_ids_to_tokens(self.ids)
        starts = _word_starts([pieces[position] for position in self.real])
        for position, begins in zip(self.real, starts, strict=True):
            if begins:
                groups.append([position])
            else:
                groups[-1].append(position)
        return [tuple(group) for group in groups]

    def _decode(self, positions: Sequence[int]) -> str:
        ids = [self.ids[position] for position in positions]
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


@dataclass(frozen=True)
class TextPart:
    """A range of the positions that a layer attends to: what one tokenizer makes of the prompt.

    Attributes:
        tokenizer: None for positions without words of the prompt.
        length: number of positions. None is all that the other parts leave, for one part at most.
        prefix: what the pipeline puts before the prompt.
    """

    tokenizer: Any | None
    length: int | None
    prefix: str = ""


class JoinedText:
    """One prompt as a layer gets it: the parts one after the other, read like one `Text`.

    Args:
        prompt: a text, or one text for each part if they differ.
        parts: the parts, in order.
        length: number of positions of all parts together.

    Raises:
        ValueError: the length leaves no position for the part without a length.
    """

    def __init__(self, prompt: str | tuple[str, ...], parts: Sequence[TextPart], length: int):
        self.prompt = prompt
        rest = length - sum(part.length or 0 for part in parts)
        if rest < 1 and any(part.length is None for part in parts):
            raise ValueError(
                f"the layers attend to {length} positions of text, too few for the {length - rest} of its first parts"
            )
        prompts = (prompt,) * len(parts) if isinstance(prompt, str) else prompt
        self._length = length
        self._texts: list[tuple[int, Text]] = []  # each with its first position
        start = 0
        for text, part in zip(prompts, parts, strict=True):
            part_length = rest if part.length is None else part.length
            if part.tokenizer is not None:
                self._texts.append((start, Text(text, part.tokenizer, part_length, part.prefix)))
            start += part_length

    def __len__(self) -> int:
        return self._length

    @property
    def real(self) -> tuple[int, ...]:
        """The positions that are words of the prompt, in all parts."""
        return tuple(start + position for start, text in self._texts for position in text.real)

    @property
    def outer(self) -> tuple[int, ...]:
        """Those of every part, see `Text`."""
        return tuple(start + position for start, text in self._texts for position in text.outer)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The positions (start, stop) of every part that has words of the prompt."""
        return tuple((start, start + len(text)) for start, text in self._texts)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each of these parts."""
        return tuple(text.prompt for _, text in self._texts)

    @property
    def words(self) -> list[Choice]:
        """The words of every part; a word that several parts have is there several times."""
        return [_shifted(choice, start) for start, text in self._texts for choice in text.words]

    def token(self, position: int) -> Choice:
        """One position by itself."""
        for start, text in self._texts:
            if start <= position < start + len(text):
                return _shifted(text.token(position - start), start)
        return Choice(str(position), (position,))

    def find(self, word: str) -> Choice:
        """Every occurrence in every part; a ValueError if there is none."""
        found: list[int] = []
        missed = None
        for start, text in self._texts:
            try:
                found += _shifted(text.find(word), start).positions
            except ValueError as error:
                missed = error
        if not found:
            raise missed or ValueError(f"tokens: {word!r} is not in the prompt: the layers attend to no text of it")
        return Choice(word, tuple(found))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first elements are the same."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _shifted(choice: Choice, by: int) -> Choice:
    return Choice(choice.label, tuple(position + by for position in choice.positions))


class TokenSelection:
    """What a user chooses of the text.

    Args:
        tokens: words, positions, or a mixture; None is every token of a word.
        special: with tokens=None, all positions, those of marks and padding too.

    Raises:
        TypeError: tokens has something else than words and positions, or special is no bool.
        ValueError: tokens is empty or has one twice, a negative position or an empty word; or special with tokens.
    """

    def __init__(self, tokens: str | int | Sequence[str | int] | None = None, special: bool = False):
        require_bool("special", special)
        if special and tokens is not None:
            raise ValueError(
                f"special=True: expected tokens=None with it, got {tokens!r}; or give the positions as tokens"
            )
        self.tokens = None if tokens is None else _checked_tokens(tokens)
        self.special = special

    @property
    def needs_text(self) -> bool:
        """Whether the prompt has to be known to find the positions."""
        if self.tokens is None:
            return not self.special
        return any(isinstance(token, str) for token in self.tokens)

    def check_words(self, text: Text | JoinedText) -> None:
        """Refuse words that are not in the prompt."""
        for token in self.tokens or ():
            if isinstance(token, str):
                text.find(token)

    def of_text(self, text: Text | JoinedText) -> tuple[Choice, ...]:
        """The choices in this prompt."""
        if self.tokens is None:
            positions = range(len(text)) if self.special else text.real
            if not positions:
                raise ValueError(f"the prompt {text.prompt!r} has no words: give special=True, or positions as tokens")
            return tuple(text.token(position) for position in positions)
        _check_positions(self.tokens, len(text))
        return tuple(text.find(token) if isinstance(token, str) else text.token(token) for token in self.tokens)

    def of_length(self, length: int) -> tuple[Choice, ...]:
        """The choices in an unknown text of this length."""
        positions: Iterable[int] = range(length)
        if self.tokens is not None:
            _check_positions(self.tokens, length)
            positions = [token for token in self.tokens if isinstance(token, int)]
        return tuple(Choice(str(position), (position,)) for position in positions)


def _checked_tokens(tokens: object) -> tuple[str | int, ...]:
    chosen = tuple(tokens) if isinstance(tokens, (tuple, list, range)) else (tokens,)
    for token in chosen:
        if isinstance(token, bool) or not isinstance(token, (str, int)):
            raise TypeError(f"tokens: expected words, positions in the text, or None, got {tokens!r}")
        if isinstance(token, int) and token < 0:
            raise ValueError(f"tokens: expected positions from 0, the start mark, got {tokens!r}")
        if isinstance(token, str) and not token.strip():
            raise ValueError(f"tokens: expected words, got the empty {token!r} in {tokens!r}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"tokens: expected at least one, each once, got {tokens!r}")
    return chosen


def _check_positions(tokens: Iterable[str | int], length: int) -> None:
    for token in tokens:
        if isinstance(token, int) and token >= length:
            raise ValueError(f"tokens: position {token} is not in the text, which has positions 0 to {length - 1}")


def _word_starts(pieces: Sequence[str]) -> list[bool]:
    """Whether each token begins a word, by the marks of CLIP ("</w>" ends one), BERT ("##") and T5 ("▁")."""
    if any(piece.endswith("</w>") for piece in pieces):
        return [index == 0 or pieces[index - 1].endswith("</w>") for index in range(len(pieces))]
    if any(piece.startswith(("▁", "Ġ")) for piece in pieces):
        return [index == 0 or piece.startswith(("▁", "Ġ")) for index, piece in enumerate(pieces)]
    return [index == 0 or not piece.startswith("##") for index, piece in enumerate(pieces)]
