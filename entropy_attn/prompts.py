"""Which positions of the encoded text belong to which word of the prompt, by the pipeline's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_MARKS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


@dataclass(frozen=True)
class Choice:
    """Something to look at in the text: a label, and the positions whose maps are averaged."""

    label: str
    positions: tuple[int, ...]


class Text:
    """One prompt as the text encoder gets it, cut and padded to its full length, or to `length`.

    real: the positions that are words of the prompt, not start and end marks or padding.
    words: the words of the prompt with their positions, in order; a word may be several tokens.
    """

    def __init__(self, prompt: str, tokenizer: Any, length: int | None = None):
        # As pipelines call it, so that positions are theirs whatever the side that is padded.
        length = tokenizer.model_max_length if length is None else length
        encoded = tokenizer(prompt, padding="max_length", max_length=length, truncation=True)
        marks = {getattr(tokenizer, name, None) for name in _MARKS}
        self.prompt = prompt
        self.ids: list[int] = list(encoded["input_ids"])
        self.real = tuple(
            position
            for position, (token, used) in enumerate(zip(self.ids, encoded["attention_mask"], strict=True))
            if used and token not in marks
        )
        self._tokenizer = tokenizer
        self.words = [Choice(self._decode(positions), positions) for positions in self._word_positions()]

    def __len__(self) -> int:
        return len(self.ids)

    def token(self, position: int) -> Choice:
        """One position by itself."""
        return Choice(self._decode((position,)), (position,))

    def find(self, word: str) -> Choice:
        """All places where this word, or these words in a row, stand in the prompt."""
        wanted = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        starts = {choice.positions[0] for choice in self.words}
        ends = {choice.positions[-1] for choice in self.words}
        found: list[int] = []
        for start in starts if wanted else ():
            positions = tuple(range(start, start + len(wanted)))
            if positions[-1] in ends and [self.ids[p] for p in positions] == list(wanted):
                found += positions
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
    """A stretch of the positions that a layer attends to: what one tokenizer makes of the prompt.

    tokenizer: None for positions that no word of the prompt is at.
    length: None is all that the other parts leave; no more than one part may be so.
    """

    tokenizer: Any | None
    length: int | None


class JoinedText:
    """One prompt as a layer gets it: the parts one after the other, as one `Text`.

    prompt: a text, or one for each part where they differ. length: of all parts together.
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
            own = rest if part.length is None else part.length
            if part.tokenizer is not None:
                self._texts.append((start, Text(text, part.tokenizer, own)))
            start += own

    def __len__(self) -> int:
        return self._length

    @property
    def real(self) -> tuple[int, ...]:
        return tuple(start + position for start, text in self._texts for position in text.real)

    @property
    def words(self) -> list[Choice]:
        return [_shifted(choice, start) for start, text in self._texts for choice in text.words]

    def token(self, position: int) -> Choice:
        for start, text in self._texts:
            if start <= position < start + len(text):
                return _shifted(text.token(position - start), start)
        return Choice(str(position), (position,))

    def find(self, word: str) -> Choice:
        """In every part, for each has its own view of the prompt."""
        found, missed = [], None
        for start, text in self._texts:
            try:
                found += _shifted(text.find(word), start).positions
            except ValueError as error:
                missed = error
        if not found:
            raise missed or ValueError(f"tokens: {word!r}: no part of what the layers attend to is text of the prompt")
        return Choice(word, tuple(found))


def _shifted(choice: Choice, by: int) -> Choice:
    return Choice(choice.label, tuple(position + by for position in choice.positions))


class TokenSelection:
    """What a user wants of the text: words, positions, or None for every word; `special` takes all positions then."""

    def __init__(self, tokens: str | int | Sequence[str | int] | None = None, special: bool = False):
        if not isinstance(special, bool):
            raise TypeError(f"special={special!r}: True or False is needed")
        if special and tokens is not None:
            raise ValueError(f"special=True with tokens={tokens!r}: give it with tokens=None, or name the positions")
        self.tokens = None if tokens is None else _checked(tokens)
        self.special = special

    @property
    def needs_text(self) -> bool:
        """Whether the prompt has to be known to say which positions are meant."""
        if self.tokens is None:
            return not self.special
        return any(isinstance(token, str) for token in self.tokens)

    def check_words(self, text: Text | JoinedText) -> None:
        """Refuse words that the prompt does not have."""
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
        """The choices in a text of which no more is known than its length."""
        positions = range(length) if self.tokens is None else self.tokens
        _check_positions(positions, length)
        return tuple(Choice(str(position), (position,)) for position in positions)


def _checked(tokens: object) -> tuple[str | int, ...]:
    chosen = tuple(tokens) if isinstance(tokens, (tuple, list, range)) else (tokens,)
    for token in chosen:
        if isinstance(token, bool) or not isinstance(token, (str, int)):
            raise TypeError(f"tokens={tokens!r}: words, positions in the text, or None are needed")
        if isinstance(token, int) and token < 0:
            raise ValueError(f"tokens={tokens!r}: {token} is no position; they count from 0, the start mark")
        if isinstance(token, str) and not token.strip():
            raise ValueError(f"tokens={tokens!r}: {token!r} is no word")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"tokens={tokens!r}: at least one, each once, is needed")
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
