"""Where the picture attends to the words of the prompt: head-averaged attention maps, kept on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entropy_attn.prompts import Choice, JoinedText, TextPart, TokenSelection
from entropy_attn.recorders import overlay as heat
from entropy_attn.recorders.base import Prompt, Recorder, Request
from entropy_attn.recorders.map_files import save_maps
from entropy_attn.recorders.map_sums import MapSums, Size
from entropy_attn.scale import CallInfo, token_grid
from entropy_attn.validation import checked_prompt, checked_steps, checked_token_size


@dataclass(frozen=True)
class _Generation:
    """What has to stay the same for maps to be averaged."""

    latent_size: Size
    batch: int
    branches: tuple[str, ...]


class MapRecorder(Recorder):
    """Averages the attention maps of chosen words: `ea.apply(pipe, record=recorder)`.

    A map is the softmax probability that each token of the picture gives to a token of the text, averaged over the
    heads, over the layers of one size, and over the denoising steps. The mean is kept on the device: its memory does
    not grow with steps, layers or heads, and nothing waits for the device until the maps are read. It is of the layers
    with text among their keys: cross-attention, and joint attention, where it is of the picture's queries, and
    normalised over all keys, the picture's too: over the text it then sums to less than 1.

    tokens: words of the prompt, positions in the text (0 is the first), or a mixture. None is every token that is a
        word or a part of one. A word of several tokens, or one that stands in the prompt several times, is the mean of
        their maps, as in DAAM; several words in a row ("red circle") may be given as one. Stable Diffusion 3 has every
        word twice, in CLIP's text (its 77 positions come first) and in T5's: a word is the mean of both. Which words
        are where is known for pipelines of Stable Diffusion 1, 2, XL and 3, of LDM and of Flux; elsewhere give
        positions.
    size: (rows, columns) in tokens of the layers to average. None is the size that most cross-attention layers have;
        where several have as many, the one nearest to a quarter of the latent's sides, which is (H / 32, W / 32) for
        a picture of H x W pixels in Stable Diffusion. It is settled in the first step: until then, every size is kept.
    steps: denoising steps, from 0, to keep apart from each other; the others are then not looked at. Memory grows
        with their number. None is one mean over all steps.
    special: with tokens=None, take all positions of the text, with the start and end marks and the padding.
    all_branches: keep every part of a guided batch, apart from each other, instead of the conditional one alone. The
        words of all of them are those of the prompt.
    prompt: the prompt, or a list of them, for a pipeline that is given embeddings instead.
    branches: names of the equal parts that the denoiser's batch consists of, in order; None finds them out, as in
        `EntropyRecorder`.

    Several generations are averaged where they share prompts and sizes; others need `reset()` between them.
    """

    def __init__(
        self,
        tokens: str | int | Sequence[str | int] | None = None,
        size: Size | None = None,
        *,
        steps: Iterable[int] | None = None,
        special: bool = False,
        all_branches: bool = False,
        prompt: str | Sequence[str] | None = None,
        branches: tuple[str, ...] | None = None,
    ):
        super().__init__(branches)
        self.selection = TokenSelection(tokens, special)
        self.size = checked_token_size("size", size)
        self.steps = checked_steps(steps)
        if not isinstance(all_branches, bool):
            raise TypeError(f"all_branches={all_branches!r}: True or False is needed")
        if branches is not None and "cond" not in self.branches and len(self.branches) > 1 and not all_branches:
            raise ValueError(f"branches={branches!r}: 'cond' must be among them, or give all_branches=True")
        self.all_branches = all_branches
        self.prompt = None if prompt is None else checked_prompt(prompt)
        self._parts: tuple[TextPart, ...] = ()
        self._prompts: list[Prompt] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything recorded."""
        self._choices: tuple[tuple[Choice, ...], ...] | None = None  # of each prompt
        self._length: int | None = None  # positions of the text
        self._generation: _Generation | None = None
        self._sums = MapSums(self.size, apart=self.steps is not None)
        # What to say where nothing was recorded
        self._steps_seen: set[int] = set()
        self._lengths_seen: set[int] = set()
        self._misfits: dict[int, Size] = {}  # numbers of queries that are no picture of these latents
        if self._prompts is not None and self._parts:
            known = sum(part.length or 0 for part in self._parts)
            if all(part.length is not None for part in self._parts):
                self._read_prompts(known)
            else:  # the rest is known with the first call; a word that is not there is refused before
                for prompt in self._prompts:
                    self.selection.check_words(JoinedText(prompt, self._parts, known + _LONG))

    # -- what the router calls ----------------------------------------------------------------------------------------

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        if self.selection.needs_text and not any(part.tokenizer is not None for part in parts):
            raise ValueError(
                f"tokens={self.selection.tokens!r}: words need the pipeline's tokenizer, which there is none of, or it "
                "is not known where its words are: give positions, as in tokens=(2, 5), or special=True for all of them"
            )
        self._parts = parts
        if not self._sums:
            self._prompts = None
            self.reset()
        if self.prompt is not None:
            self.begin(None)

    def begin(self, prompts: list[Prompt] | None) -> None:
        prompts = self.prompt if prompts is None else prompts
        if prompts is None and self.selection.needs_text:
            raise ValueError(_PROMPT_UNKNOWN)
        if self._sums and prompts != self._prompts:
            raise ValueError(f"this MapRecorder holds the maps of {_named(self._prompts)}: reset() it before another")
        if not self._sums:
            self._prompts = prompts
            self.reset()

    def wants(self, info: CallInfo, latent_size: Size) -> Request:
        length = info.text_tokens
        if info.kind == "self" or not length:
            return None
        self._steps_seen.add(info.step)
        if self.steps is not None and info.step not in self.steps:
            return None
        if self._choices is None:
            if self._prompts is not None and self._parts:
                self._read_prompts(length)
            elif self.selection.needs_text:
                raise ValueError(_PROMPT_UNKNOWN)
            else:
                self._choices = (self.selection.of_length(length),)
        self._length = self._length or length
        self._lengths_seen.add(length)
        if length != self._length:  # keys that are not the text, such as an IP-Adapter's picture
            return None
        if self._generation is not None and latent_size != self._generation.latent_size:
            raise ValueError(_other_generation(f"latents of {self._generation.latent_size}", f"of {latent_size}"))
        queries = info.picture_queries
        size = token_grid(queries, latent_size)
        if math.prod(size) != queries:
            self._misfits[queries] = latent_size
            return None
        return self._keys() if self._sums.wants(info.layer, size, info.step, latent_size) else None

    @torch.no_grad()
    def record(
        self,
        info: CallInfo,
        scale: float | torch.Tensor,
        measured: torch.Tensor,
        branches: tuple[str, ...],
        latent_size: Size,
    ) -> None:
        """Take in one call's map (batch, queries, keys). Nothing here waits for the device."""
        self._check_parts(info, len(measured), branches)
        queries = info.picture_queries
        if measured.shape[1] != queries:
            raise ValueError(
                f"layer {info.layer!r}: which of its queries are the picture's differs within the batch, so that there "
                "is no map of it"
            )
        # Guidance may be switched off and on again, and its branches may come in calls of their own.
        guided = self.branches is None and branches != ("all",)
        generation = _Generation(latent_size, len(measured) // len(branches), _GUIDED if guided else branches)
        self._generation = self._generation or generation
        if generation != self._generation:
            held, given = (f"{each.batch} pictures in {each.branches}" for each in (self._generation, generation))
            raise ValueError(_other_generation(held, given))
        if generation.batch % len(self._choices):
            raise ValueError(f"{generation.batch} pictures were generated from {_named(self._prompts)}")
        parts = measured.unflatten(0, (len(branches), generation.batch))
        for branch, maps in zip(branches, parts, strict=True):
            if self.all_branches or branch == "cond" or "cond" not in generation.branches:
                self._sums.add(token_grid(queries, latent_size), info.step, branch, maps)

    def check_call(self) -> None:
        """Say after the first call, rather than with the last, that there will be no map."""
        if self._lengths_seen:
            self._require_recorded()

    # -- what was recorded --------------------------------------------------------------------------------------------

    def maps(self, step: int | None = None) -> torch.Tensor:
        """The mean maps (branch, picture, token, row, column) in float32, on the device they were recorded on.

        Branches are named by `branch_names`, tokens by `tokens`. `step` is one of `steps`; None is the mean of all
        that was recorded. A branch that did not run at a step, as guidance was off then, is NaN there.
        """
        means = self._sums.mean(self.map_size, step)
        pictures = [self._of_picture(means, picture) for picture in range(means.shape[1])]
        if len({found.shape for found in pictures}) > 1:
            raise ValueError(
                "the prompts have different numbers of tokens: choose words or positions with tokens=..., or read one "
                "picture with heat_map(token, picture=...)"
            )
        return torch.stack(pictures, dim=1)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The label of every token of `maps()`: the word, or the position where the prompt is not known."""
        return self.labels(0)

    def labels(self, picture: int = 0) -> tuple[str, ...]:
        """The labels of one picture of the batch; those of tokens=None differ where its prompts do."""
        self._require_recorded()
        choices = self._choices_by_picture(self._generation.batch)
        if not 0 <= picture < len(choices):
            raise ValueError(f"picture={picture!r}: a number from 0 to {len(choices) - 1} is needed")
        return tuple(choice.label for choice in choices[picture])

    @property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """The positions in the text that each of `tokens` averages, in the first picture."""
        self._require_recorded()
        return tuple(choice.positions for choice in self._choices[0])

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The parts of the batch that were kept, in the order of `maps()`."""
        self._require_recorded()
        return self._sums.branches()

    @property
    def map_size(self) -> Size:
        """(rows, columns) of the maps."""
        self._require_recorded()
        return self._sums.size(self._generation.latent_size)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that were averaged."""
        return tuple(sorted(self._sums.layers[self.map_size]))

    @property
    def recorded_steps(self) -> tuple[int, ...]:
        """The steps that are kept apart, of those in `steps`; empty with steps=None."""
        self._require_recorded()
        return self._sums.steps(self.map_size)

    def heat_map(
        self,
        token: str | int,
        size: Size | None = None,
        *,
        picture: int = 0,
        branch: str | None = None,
        step: int | None = None,
        mode: str = "bicubic",
    ) -> torch.Tensor:
        """One token's map (rows, columns), enlarged to `size`, a picture's (height, width); None leaves it as it is.

        token: a label of `labels(picture)`, or its place among them.
        branch: None is the guided half, "cond", of a guided batch, else the first of `branch_names`.
        """
        place, names = _place(token, self.labels(picture)), self.branch_names
        if branch is None:
            branch = "cond" if "cond" in names else names[0]
        elif branch not in names:
            raise ValueError(f"branch={branch!r}: recorded were {names}")
        found = self._of_picture(self._sums.mean(self.map_size, step), picture)[names.index(branch), place]
        return found if size is None else heat.enlarge(found, size, mode)

    def overlay(
        self,
        image: Any,
        token: str | int,
        *,
        limits: tuple[float, float] | None = None,
        strength: float = 0.65,
        **options: Any,
    ) -> Any:
        """One token's map in colour over a PIL picture; returns a new one.

        limits: the attention that is shown darkest and brightest; None is the map's own lowest and highest.
        strength: 0 is the picture alone, 1 the map alone. The other options are those of `heat_map`.
        """
        found = self.heat_map(token, (image.height, image.width), **options)
        return heat.overlay(image, found, limits=limits, strength=strength)

    def save(self, path: str | Path) -> Path:
        """Write the maps as .npz (maps, branches, tokens, steps), or as a table, .csv or .json; returns the path.

        Steps that were kept apart are written each for itself.
        """
        tokens = tuple(self.labels(picture) for picture in range(self._generation.batch if self._generation else 1))
        steps = [None] if self.steps is None else list(self.recorded_steps)
        return save_maps(Path(path), {step: self.maps(step).cpu().numpy() for step in steps}, self.branch_names, tokens)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _read_prompts(self, length: int) -> None:
        """What is chosen of each prompt, in a text of so many positions."""
        self._length = length
        self._choices = tuple(
            self.selection.of_text(JoinedText(prompt, self._parts, length)) for prompt in self._prompts
        )

    def _keys(self) -> tuple[int, int]:
        """The smallest range of keys with everything that was chosen in it."""
        positions = [position for choices in self._choices for choice in choices for position in choice.positions]
        return min(positions), max(positions) + 1

    def _of_picture(self, means: torch.Tensor, picture: int) -> torch.Tensor:
        """(branch, token, row, column) of one picture, from the mean of the sums."""
        start, _ = self._keys()
        choices = self._choices_by_picture(means.shape[1])[picture]
        columns = [[position - start for position in choice.positions] for choice in choices]
        found = torch.stack([means[:, picture, :, places].mean(-1) for places in columns], dim=1)
        return found.unflatten(-1, self.map_size)

    def _choices_by_picture(self, pictures: int) -> list[tuple[Choice, ...]]:
        # Pipelines repeat each prompt for its pictures before they go on to the next.
        each = pictures // len(self._choices)
        return [choices for choices in self._choices for _ in range(each)]

    def _require_recorded(self) -> None:
        if self._sums:
            return
        if not self._steps_seen:
            raise ValueError(
                "no call with text among its keys was recorded: run the pipeline inside `with apply(record=...)`"
            )
        if not self._lengths_seen:
            last = max(self._steps_seen)
            raise ValueError(f"steps={sorted(self.steps)}: none of them was run; the last step was {last}")
        if not self._sums.layers and self._misfits:
            counts = ", ".join(map(str, sorted(self._misfits)))
            raise ValueError(
                f"no layer with text among its keys has one query a token of the picture: there were {counts} queries, "
                f"of latents of {next(iter(self._misfits.values()))}, as with merged or padded tokens and in video"
            )
        if not self._sums.layers:
            lengths = ", ".join(map(str, sorted(self._lengths_seen)))
            raise ValueError(
                f"no layer attended to the {self._length} positions of the text; they had {lengths} keys: give "
                "positions as tokens"
            )
        sizes = ", ".join(f"{size} ({len(layers)} layers)" for size, layers in sorted(self._sums.layers.items()))
        raise ValueError(
            f"size={self.size}: no layer of that size was called with text among its keys; there were {sizes}"
        )


_GUIDED = ("uncond", "cond")

_LONG = 512  # positions of the longest text that any of the pipelines takes

_PROMPT_UNKNOWN = (
    "the prompt is not known, so neither are its words: call the pipeline with a text, or give MapRecorder(prompt=...)"
)


def _place(token: str | int, labels: tuple[str, ...]) -> int:
    if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < len(labels):
        return token
    places = [place for place, label in enumerate(labels) if label == token]
    if len(places) == 1:
        return places[0]
    if places:
        raise ValueError(f"token={token!r} stands at several places of {labels}: give one of the places {places}")
    raise ValueError(f"token={token!r}: one of {labels}, or a place among them, is needed")


def _named(prompts: list[Prompt] | None) -> str:
    if prompts is None:
        return "prompts that were given as embeddings"
    return "the prompt " + repr(prompts[0]) if len(prompts) == 1 else f"{len(prompts)} prompts"


def _other_generation(held: str, given: str) -> str:
    return f"this MapRecorder holds maps from {held}, to which those {given} cannot be added: reset() it before"
