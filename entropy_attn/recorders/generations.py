"""The base class of recorders that average the maps of generations with the same prompts and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from entropy_attn.prompts import TextPart, TokenSelection
from entropy_attn.recorders.base import Prompt, Recorder
from entropy_attn.recorders.text_choices import TextChoices
from entropy_attn.scale import CallInfo
from entropy_attn.validation import Size, checked_prompt, checked_steps, require_bool

_GUIDED = ("uncond", "cond")


@dataclass(frozen=True)
class Generation:
    """What has to stay the same for maps to be averaged."""

    latent_size: Size
    batch: int
    branches: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.batch} images in {self.branches}"


class GenerationRecorder(Recorder):
    """A recorder of maps, which holds those of one set of prompts and of one size until it is reset.

    A subclass has its sums in `_sums`, which is false while nothing is recorded, and makes them anew in `_start`.

    Args:
        selection: the words or positions of the text.
        steps, all_branches, prompt, branches: as in `MapRecorder`.
    """

    _sums: Any
    _generation: Generation | None

    def __init__(
        self,
        selection: TokenSelection,
        steps: Iterable[int] | None,
        all_branches: bool,
        prompt: str | Sequence[str] | None,
        branches: tuple[str, ...] | None,
    ):
        super().__init__(branches)
        self.steps = checked_steps(steps)
        require_bool("all_branches", all_branches)
        names = self.branches or ()
        if len(names) > 1 and "cond" not in names and not all_branches:
            raise ValueError(f"branches: expected 'cond' among them, or all_branches=True, got {branches!r}")
        self.all_branches = all_branches
        self.prompt = None if prompt is None else checked_prompt(prompt)
        self._text = TextChoices(selection, self.prompt)
        self.reset()

    def reset(self) -> None:
        """Forget everything recorded."""
        self._start(self._text.prompts)

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        """`apply` was called with this recorder.

        Args:
            parts: the parts of the text that layers attend to, one for each tokenizer.

        Raises:
            ValueError: words were chosen, and where they are in the text is not known.
        """
        self._text.attach(parts)
        if not self._sums:
            self._start(None)
        if self.prompt is not None:
            self.begin(None)

    def begin(self, prompts: list[Prompt] | None) -> None:
        """A generation begins.

        Args:
            prompts: the prompts of the batch; None if the pipeline was given embeddings instead of text.

        Raises:
            ValueError: the recorder holds the maps of other prompts.
        """
        prompts = self._text.known(prompts)
        if not self._sums:
            self._start(prompts)
        elif prompts != self._text.prompts:
            raise ValueError(
                f"this {type(self).__name__} holds the maps of {self._text.named()}: reset() it before another"
            )

    def _start(self, prompts: list[Prompt] | None) -> None:
        """Forget everything recorded, and choose from these prompts."""
        self._generation = None
        self._text.start(prompts)

    def _check_latents(self, latent_size: Size) -> None:
        """The latents have the size of those whose maps are held."""
        if self._generation is not None and latent_size != self._generation.latent_size:
            raise self._other_generation(f"latents of {self._generation.latent_size}", f"of {latent_size}")

    def _check_generation(
        self, info: CallInfo, batch: int, branches: tuple[str, ...], latent_size: Size, of_text: bool = True
    ) -> Generation:
        """What a call's maps are of: the same as the maps that are held. `of_text`: they belong to the prompts."""
        self._check_parts(info, batch, branches)
        # Guidance may be switched off and on again, and its branches may be separate calls.
        guided = self.branches is None and branches != ("all",)
        generation = Generation(latent_size, batch // len(branches), _GUIDED if guided else branches)
        self._generation = self._generation or generation
        if generation != self._generation:
            raise self._other_generation(str(self._generation), str(generation))
        if of_text and generation.batch % len(self._text):
            raise ValueError(f"{generation.batch} images were generated from {self._text.named()}")
        return generation

    def _kept(
        self, generation: Generation, measured: torch.Tensor, branches: tuple[str, ...]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Each branch that is kept, with its images of `measured` (B, ...)."""
        for branch, maps in zip(branches, measured.unflatten(0, (len(branches), generation.batch)), strict=True):
            if self.all_branches or branch == "cond" or "cond" not in generation.branches:
                yield branch, maps

    def _other_generation(self, held: str, given: str) -> ValueError:
        return ValueError(
            f"this {type(self).__name__} holds maps from {held}, to which those {given} cannot be added: reset() it "
            "before"
        )
