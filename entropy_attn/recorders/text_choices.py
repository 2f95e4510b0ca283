"""Which positions of the text a `MapRecorder` averages, for each prompt of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from entropy_attn.prompts import Choice, JoinedText, TextPart, TokenSelection
from entropy_attn.recorders.base import Prompt

_PROMPT_UNKNOWN = (
    "the prompt is not known, so neither are its words: call the pipeline with a text, or give the recorder prompt=..."
)
_LONG = 512  # positions of the longest text that any of the pipelines takes


class TextChoices:
    """The chosen positions of each prompt, once the length of the text is known.

    Attributes:
        selection: the words or positions that the user asked for.
        prompts: the prompts of this generation; None if they are not known.
        length: positions of the text; None before the first call that attends to it.
    """

    def __init__(self, selection: TokenSelection, given: Sequence[str] | None):
        """given: the prompts for a pipeline that is called with embeddings; None if there are none."""
        self.selection = selection
        self.prompts: list[Prompt] | None = None
        self.length: int | None = None
        self._given: list[Prompt] | None = None if given is None else list(given)
        self._parts: tuple[TextPart, ...] = ()
        self._of_prompts: tuple[tuple[Choice, ...], ...] = ()  # empty before they are chosen

    def __len__(self) -> int:
        """How many prompts there are choices for."""
        return len(self._of_prompts)

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        """Take the parts of the text that layers attend to."""
        if self.selection.needs_text and not any(part.tokenizer is not None for part in parts):
            raise ValueError(
                f"tokens={self.selection.tokens!r}: words need the pipeline's tokenizer; there is none, or the "
                "positions of its words are not known: give positions, as in tokens=(2, 5), or special=True for all"
            )
        self._parts = parts

    def known(self, prompts: list[Prompt] | None) -> list[Prompt] | None:
        """These prompts, or those that the user gave; refused if words were chosen and there are neither."""
        prompts = self._given if prompts is None else prompts
        if prompts is None and self.selection.needs_text:
            raise ValueError(_PROMPT_UNKNOWN)
        return prompts

    def start(self, prompts: list[Prompt] | None) -> None:
        """Forget the choices, and choose from these prompts as soon as possible."""
        self.prompts, self.length, self._of_prompts = prompts, None, ()
        if prompts is None or not self._parts:
            return
        stated = sum(part.length or 0 for part in self._parts)
        if all(part.length is not None for part in self._parts):
            self._read(prompts, stated)
        else:  # the first call says the rest; a word that is not in the prompt is refused now
            for prompt in prompts:
                self.selection.check_words(JoinedText(prompt, self._parts, stated + _LONG))

    def observe(self, length: int) -> None:
        """A layer attends to a text of this length: choose, if that was not possible before."""
        if not self._of_prompts:
            if self.prompts is not None and self._parts:
                self._read(self.prompts, length)
            elif self.selection.needs_text:
                raise ValueError(_PROMPT_UNKNOWN)
            else:
                self._of_prompts = (self.selection.of_length(length),)
        self.length = self.length or length

    def keys(self) -> tuple[int, int]:
        """The smallest range (start, stop) of positions with everything that was chosen in it."""
        positions = self.chosen()
        return positions[0], positions[-1] + 1

    def chosen(self) -> tuple[int, ...]:
        """Every position that was chosen in any prompt, sorted."""
        return tuple(sorted({at for choices in self._of_prompts for choice in choices for at in choice.positions}))

    def by_image(self, images: int) -> list[tuple[Choice, ...]]:
        """The choices for each image of a batch."""
        # Pipelines repeat each prompt for its images before they go on to the next.
        each = images // len(self._of_prompts)
        return [choices for choices in self._of_prompts for _ in range(each)]

    def of_image(self, means: torch.Tensor, image: int) -> torch.Tensor:
        """One image's (branch, token, query), from the means (branch, image, query, position from `keys()`)."""
        start, _ = self.keys()
        choices = self.by_image(means.shape[1])[image]
        columns = [[position - start for position in choice.positions] for choice in choices]
        return torch.stack([means[:, image, :, chosen].mean(-1) for chosen in columns], dim=1)

    def named(self) -> str:
        """The prompts as a message names them."""
        if self.prompts is None:
            return "prompts that were given as embeddings"
        return f"the prompt {self.prompts[0]!r}" if len(self.prompts) == 1 else f"{len(self.prompts)} prompts"

    def _read(self, prompts: list[Prompt], length: int) -> None:
        texts = [JoinedText(prompt, self._parts, length) for prompt in prompts]
        self._of_prompts = tuple(self.selection.of_text(text) for text in texts)
        self.length = length
