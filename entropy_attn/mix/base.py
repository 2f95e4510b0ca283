"""The base class of mixes, and what a second answer of an attention call may be computed from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from torch import Tensor

from entropy_attn.display import Settings
from entropy_attn.scale import CallInfo
from entropy_attn.validation import checked_steps, expected, require_number, require_one_of, require_tensor


@dataclass(frozen=True)
class Identity(Settings):
    """Every query attends to itself alone, so the second answer is its value. For self- and joint attention."""


@dataclass(frozen=True, eq=False)
class OtherScale(Settings):
    """The same call with another softmax scale.

    Args:
        scale: a finite number, or a tensor of shape (), (H,) or (B, H), as a policy may return.

    Raises:
        TypeError: `scale` is neither a number nor a tensor.
        ValueError: it is not finite.
    """

    scale: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.scale, Tensor):
            return
        if not isinstance(self.scale, Real):
            raise TypeError(expected("scale", "a number or a tensor", self.scale))
        require_number("scale", self.scale)


@dataclass(frozen=True)
class OtherText(Settings):
    """The same queries with the text of another branch of guidance.

    Its keys and values are those of the sample that belongs to theirs, in the order of the images. In
    joint attention the keys and values of the image remain. For batches that have both branches.

    Args:
        branch: "cond" or "uncond".

    Raises:
        ValueError: `branch` is unknown.
    """

    branch: Literal["cond", "uncond"] = "uncond"

    def __post_init__(self) -> None:
        require_one_of("branch", self.branch, ("cond", "uncond"))


@dataclass(frozen=True, eq=False, repr=False)
class OwnText(Settings):
    """The same queries with a text that is given here. For batches with and without guidance.

    In cross-attention its tokens follow those of the prompt through the denoiser, and each layer gets their keys and
    values from its own projections. In joint attention it is carried through the blocks in further rows of the batch,
    beside the image of the samples that are mixed. docs/mix.md says which denoisers can do that.

    Args:
        embeds: (R, tokens, channels), as the pipeline's `encode_prompt` returns a text: what its denoiser is called
            with. R is 1, or the number of prompts, or of images. A text goes with the images of its prompt. With
            `branch=None` in the mix it is 1 or the denoiser's batch. In joint attention it has as many tokens as the
            prompt.
        mask: (R, tokens), of 0 and 1 or of bools, for a denoiser that is given such a mask of the prompt; else None.
        pooled: (R, channels), the pooled text, for a denoiser with joint attention that is given one; else None.

    Raises:
        TypeError: an argument is no tensor, or of the wrong dtype.
        ValueError: it has the wrong shape, or `mask` has another value, or masks a whole text.
    """

    embeds: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        require_tensor("embeds", self.embeds, floating=True)
        if self.embeds.dim() != 3 or not self.embeds.numel():
            raise ValueError(f"embeds: expected the shape (R, tokens, channels), got {tuple(self.embeds.shape)}")
        if self.pooled is not None:
            require_tensor("pooled", self.pooled, floating=True)
            if self.pooled.dim() != 2 or len(self.pooled) != len(self.embeds):
                got = tuple(self.pooled.shape)
                raise ValueError(f"pooled: expected the shape ({len(self.embeds)}, channels), got {got}")
        if self.mask is None:
            return
        require_tensor("mask", self.mask)
        if self.mask.shape != self.embeds.shape[:2]:
            shape = tuple(self.embeds.shape[:2])
            raise ValueError(f"mask: expected the shape {shape} of embeds, got {tuple(self.mask.shape)}")
        kept = self.mask != 0
        if not bool((self.mask == kept).all()) or not bool(kept.any(1).all()):
            raise ValueError("mask: expected values of 0 and 1 with a 1 in every row, got others")

    def __repr__(self) -> str:
        given = [f", {name}" for name in ("mask", "pooled") if getattr(self, name) is not None]
        return f"OwnText(embeds of shape {tuple(self.embeds.shape)}{''.join(given)})"


Other = Identity | OtherScale | OtherText | OwnText


@dataclass(frozen=True)
class Mix(Settings):
    """Base class of mixes. A subclass is a frozen dataclass with `other` and `combine`.

    The queries of the image are mixed; those of the text, in joint attention, keep their answer. Recorders see the
    first answer, the one that the scale policy decides. A subclass may ask for parts of `CallInfo` by the attributes of
    policies: `needs_sigma`, `needs_timestep`, `needs_num_steps`.

    Args:
        layers: the layers of the mix, as `apply(layers=)` takes them: "self" (image tokens among the keys: self- and
            joint attention), "cross", "all", or a regular expression that is searched for in the layer's name.
        steps: the denoising steps of the mix, counted from 0; None is all.
        branch: the branch of guidance whose samples are mixed, "cond" or "uncond"; None is all samples. A batch without
            guidance is "cond".

    Raises:
        TypeError: `layers` is no string, or `steps` no collection of integers.
        ValueError: `steps` is empty or has a negative number, or `branch` is unknown.
    """

    layers: str = field(default="self", kw_only=True)
    steps: Collection[int] | None = field(default=None, kw_only=True)
    branch: Literal["cond", "uncond"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str) or not self.layers:
            raise TypeError(expected("layers", "'self', 'cross', 'all' or a regular expression", self.layers))
        object.__setattr__(self, "steps", checked_steps(self.steps))
        if self.branch not in (None, "cond", "uncond"):
            raise ValueError(expected("branch", "None, 'cond' or 'uncond'", self.branch))

    @property
    def needs_branches(self) -> bool:
        """Whether the branches of the samples have to be known."""
        return self.branch is not None

    @property
    def own_text(self) -> OwnText | None:
        """The text that `other` may answer with; None for a mix without one."""
        return None

    def other(self, info: CallInfo) -> Other | None:
        """What the second answer of a call is computed from.

        Args:
            info: the attention call, in one of the layers and steps.

        Returns:
            `Identity()`, `OtherScale(scale)`, `OtherText(branch)` or `own_text`; None keeps the first answer, and costs
            nothing.
        """
        raise NotImplementedError

    def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
        """The answer that the layer gets. B are the samples, and Nq the queries, that are mixed.

        Args:
            out: the first answer, (B, H, Nq, Dv).
            other: the second answer, (B, H, Nq, Dv).
            value: the values of all keys, (B, H, Nk, Dv), of the first answer.
            info: the attention call.

        Returns:
            (B, H, Nq, Dv), of any floating-point dtype.
        """
        raise NotImplementedError

    def takes_step(self, step: int) -> bool:
        """Whether this is one of the steps.

        Args:
            step: the denoising step, from 0.

        Returns:
            True for every step without `steps`.
        """
        steps: Any = self.steps
        return steps is None or step in steps
