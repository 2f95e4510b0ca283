"""Policies for words of the prompt: weights, and regions of the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch

from entropy_attn.display import Settings
from entropy_attn.prompts import TextPart
from entropy_attn.scale.call import CallInfo
from entropy_attn.scale.key_groups import KeyGroups
from entropy_attn.scale.prompt_words import PromptWords, Words, checked_words
from entropy_attn.scale.regions import Region, checked_region, on_grid
from entropy_attn.scale.token_grid import token_grid
from entropy_attn.validation import expected, require_number


@dataclass(frozen=True, eq=False)
class _OfPrompt(Settings):
    """What both have in common: they follow the prompts of the pipeline, for one pipeline at a time."""

    gives_key_groups: ClassVar[bool] = True
    follows: ClassVar[bool] = True  # the router tells them of the pipeline's texts

    branch: Literal["cond"] | None = field(default="cond", kw_only=True)
    scale: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.branch not in (None, "cond"):
            raise ValueError(expected("branch", "None or 'cond'", self.branch))
        if self.scale is not None:
            require_number("scale", self.scale)
        object.__setattr__(self, "_words", PromptWords(self._name()))

    @property
    def needs_branches(self) -> bool:
        """Whether the rows of the negative prompt have to be known."""
        return self.branch is not None

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        """The policy was given to `apply`.

        Args:
            parts: the parts of the text that layers attend to, one for each tokenizer; empty where they are not known.

        Raises:
            ValueError: words need the pipeline's tokenizer.
        """
        self._prompt_words.attach(parts, self._chosen())

    def begin(self, prompts: list[Any] | None) -> None:
        """A generation begins.

        Args:
            prompts: the prompts of the batch; None if they are not known.
        """
        self._prompt_words.begin(prompts)

    @property
    def _prompt_words(self) -> PromptWords:
        return cast(PromptWords, vars(self)["_words"])

    def _name(self) -> str:
        raise NotImplementedError

    def _chosen(self) -> tuple[Words, ...]:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class PromptWeights(_OfPrompt):
    """Weights of words: the attention of the image to them, before it is normalized, is multiplied by a number.

    It adds ln(weight) to their logits, in cross-attention (`apply(..., layers="cross")`) and in joint attention.
    Unlike a weight on the embeddings of words, it changes no other word.

    Source: attention reweighting of Hertz et al., "Prompt-to-Prompt Image Editing with Cross-Attention Control", ICLR
    2023, arXiv 2208.01626, which multiplies the probabilities after the softmax; here they still have the sum 1.

    Args:
        weights: {words: weight}; words as they are in the prompt, or a position or positions in the text. 0 hides
            them.
        branch: "cond" leaves the rows of the negative prompt as they are; None is for all rows of the batch.
        scale: the scale of all logits; None is the model's default scale.

    Raises:
        TypeError: `weights` is no mapping of words to numbers.
        ValueError: `weights` is empty, or a weight is negative or not finite.
    """

    weights: Mapping[str | int | tuple[int, ...], float]

    def __post_init__(self) -> None:
        given = _checked_mapping("weights", self.weights, "{words: weight}")
        for weight in given.values():
            require_number("weights", weight, least=0.0)
        object.__setattr__(self, "weights", given)
        super().__post_init__()

    def __call__(self, info: CallInfo) -> KeyGroups | float | None:
        """The key groups of one call.

        Args:
            info: the attention call.

        Returns:
            The biases of the words for the queries of the image; `scale` where there is no text.

        Raises:
            ValueError: words are not in the prompt, or a position is not in the text.
        """
        text = _text_of(info)
        if text is None:
            return self.scale
        bias = torch.zeros(info.seqlen_k)
        for words, weight in self.weights.items():
            for position in self._prompt_words.positions(words, info.text_tokens):
                bias[text[0] + position] += math.log(weight) if weight else -math.inf
        return KeyGroups(self.scale, key_bias=bias, key_rows=info.image_rows, branch=self.branch)

    def _name(self) -> str:
        return "weights"

    def _chosen(self) -> tuple[Words, ...]:
        return tuple(self.weights)


@dataclass(frozen=True, eq=False)
class Regions(_OfPrompt):
    """Regional prompts: queries of the image attend to words of the prompt in the region of these words.

    The bias of a word is `inside` for the queries in its region and `outside` for those elsewhere; words without a
    region, and the marks and padding of the text, keep their logits. It is for cross-attention
    (`apply(..., layers="cross")`) and joint attention. Queries of the same regions are one group, so memory holds a
    row of biases a group and no matrix of queries and keys.

    Source: the masks of image queries and text keys in Chen et al., "Training-free Regional Prompting for Diffusion
    Transformers", arXiv 2411.02395. They have a text encoded for each region, mask the attention between regions too,
    and mix in the unmasked result; here one prompt has all regions, and the image attends to itself as before. They do
    it in the first steps alone: `Steps(Regions(...), 0, 5)`.

    Args:
        regions: {words: region}; words as they are in the prompt, or a position or positions in the text. A region is
            a box (left, top, right, bottom) in fractions of the width and the height, or a tensor (rows, columns) of
            any size that is not 0 inside.
        inside: what is added to the logits inside, in nats.
        outside: what is added outside; -inf excludes the words there.
        branch: "cond" leaves the rows of the negative prompt as they are; None is for all rows of the batch.
        scale: the scale of all logits; None is the model's default scale.

    Raises:
        TypeError: `regions` is no mapping of words to boxes or tensors, or a number is none.
        ValueError: `regions` is empty, a box is not 0 <= left < right <= 1 and 0 <= top < bottom <= 1, a mask is empty,
            or `inside` is not finite.
    """

    regions: Mapping[str | int | tuple[int, ...], Region]
    inside: float = 0.0
    outside: float = -math.inf

    def __post_init__(self) -> None:
        given = _checked_mapping("regions", self.regions, "{words: region}")
        regions = {words: checked_region("regions", region) for words, region in given.items()}
        object.__setattr__(self, "regions", regions)
        require_number("inside", self.inside)
        if self.outside != -math.inf:
            require_number("outside", self.outside)
        object.__setattr__(self, "_made_groups", {})
        super().__post_init__()

    def __call__(self, info: CallInfo) -> KeyGroups | float | None:
        """The key groups of one call.

        Args:
            info: the attention call.

        Returns:
            The biases of the words for each group of queries; `scale` where there is no text.

        Raises:
            ValueError: words are not in the prompt, a position is not in the text, or the grid of the image is not
                known.
        """
        text = _text_of(info)
        if text is None:
            return self.scale
        same = info.kind, text, info.image_rows, info.seqlen_q, info.seqlen_k, info.latent_size
        if same not in self._made:  # the same in every layer of this size and in every step
            self._made[same] = self._groups(info, text)
        return self._made[same]

    def attach(self, parts: tuple[TextPart, ...]) -> None:
        """As `PromptWeights.attach`.

        Args:
            parts: the parts of the text.
        """
        self._made.clear()
        super().attach(parts)

    def begin(self, prompts: list[Any] | None) -> None:
        """As `PromptWeights.begin`.

        Args:
            prompts: the prompts of the batch.
        """
        self._made.clear()
        super().begin(prompts)

    @property
    def _made(self) -> dict[tuple[Any, ...], KeyGroups]:
        return cast(dict[tuple[Any, ...], KeyGroups], vars(self)["_made_groups"])

    def _groups(self, info: CallInfo, text: tuple[int, int]) -> KeyGroups:
        inside = self._members(info)
        members, groups = inside.unique(dim=0, return_inverse=True)  # (groups, regions), (image queries,)
        table = torch.zeros(len(members) + 1, info.seqlen_k)  # the last group is all other queries
        for column, words in enumerate(self.regions):
            for position in self._prompt_words.positions(words, info.text_tokens):
                table[:-1, text[0] + position] += torch.where(members[:, column], self.inside, self.outside)
        rows = torch.full((info.seqlen_q,), len(members))
        rows[slice(*info.image_rows)] = groups
        return KeyGroups(self.scale, key_bias=table, key_rows=rows, branch=self.branch)

    def _members(self, info: CallInfo) -> torch.Tensor:
        """(image queries, regions): whether a query is in a region."""
        queries = info.picture_queries
        grid = None if info.latent_size is None else token_grid(queries, info.latent_size)
        if grid is None or grid[0] * grid[1] != queries:
            raise ValueError(
                f"regions: the {queries} queries of layer {info.layer!r} are no grid of one image, so which of them "
                "are in a region is not known"
            )
        return torch.stack([on_grid(region, grid).flatten() for region in self.regions.values()], dim=1)

    def _name(self) -> str:
        return "regions"

    def _chosen(self) -> tuple[Words, ...]:
        return tuple(self.regions)


def _text_of(info: CallInfo) -> tuple[int, int] | None:
    """The text keys of a call whose queries are of the image."""
    return None if info.kind == "self" else info.text_keys


def _checked_mapping(name: str, given: object, what: str) -> dict[Words, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(expected(name, what, given))
    if not given:
        raise ValueError(expected(name, f"{what} with at least one entry", given))
    return {checked_words(name, words): value for words, value in given.items()}
