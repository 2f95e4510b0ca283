"""The settings shared by all guidance methods, and a method from a function of the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from entropy_attn.display import Settings
from entropy_attn.prompts import JoinedText, Text
from entropy_attn.validation import (
    checked_step_numbers,
    checked_token_size,
    expected,
    is_int,
    require_bool,
    require_callable,
    require_number,
)


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompt of one image, as a loss sees it.

    Args:
        text: its words by position (`find`, `words`). In Stable Diffusion 3 the image attends to two texts, of CLIP and
            of T5: a word has positions in both.
        tokens: the positions of the n real tokens, without start marks, end marks and padding.
        attention: (s, s) float32, the mean of the text encoder's self-attention over layers, heads and, if two encoders
            have the same tokens, encoders; 0 between the positions of two texts. None unless the guidance has
            `needs_text_attention`.
        previous: (h, w, s), the maps of this image at the previous guided step, detached; None at the first.
        parts: the positions (start, stop) of each text in joint attention, where the image attends to text and image,
            so that a row of the maps sums to the share that goes to the text. () for cross-attention.
    """

    text: Text | JoinedText
    tokens: tuple[int, ...]
    attention: Tensor | None = None
    previous: Tensor | None = None
    parts: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def tokens_of_parts(self) -> tuple[tuple[int, ...], ...]:
        """`tokens` of each text apart."""
        if not self.parts:
            return (self.tokens,)
        return tuple(tuple(token for token in self.tokens if start <= token < stop) for start, stop in self.parts)


@dataclass(frozen=True, kw_only=True)
class Guidance(Settings):
    """Base class of the guidance methods. A subclass defines `loss`; the settings say when and how far to follow it.

    One update is z' = z - alpha * sqrt(r_i) * dL/dz (arXiv 2411.15236, Eq. 15), with r_i linear over the denoising
    steps; see `step_size`.

    Args:
        alpha: step length on the latents; 0 changes nothing but still measures the loss.
        steps: the denoising steps, from 0, before which the latents are updated. A generation may have fewer.
        step_range: (r at the first step, r at the last step of the generation).
        refine_at: steps with up to `refine_iters` additional updates before the normal one.
        refine_iters: number of those updates.
        map_size: (rows, columns) in tokens of the layers whose maps are averaged. None is the size of most
            cross-attention layers; on a tie, the one nearest to a quarter of the latent's sides, but not to fewer than
            256 tokens: (H / 32, W / 32) for an image of H x W pixels in Stable Diffusion 1, 2 and XL, from 384 pixels
            on; 16 x 16 for smaller latents, whose quarter is too coarse for an object. In a transformer all layers
            have one size.
        layers: a regular expression; the maps are those of the layers whose names it is found in, such as
            r"^transformer_blocks\\.(8|9|10)\\.". None is every layer of that size in a UNet, and in a transformer its
            middle, from a sixth to two thirds of its layers: in Stable Diffusion 3.5 Medium these are blocks 4 to 15,
            which JEDI uses (arXiv 2505.19166). What follows the last of them is not computed.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a number is negative or not finite, or a step, `refine_iters`, `map_size` or `layers` is not
            allowed.
    """

    alpha: float = 20.0
    steps: Iterable[int] = range(25)
    step_range: tuple[float, float] = (1.0, 0.5)
    refine_at: Iterable[int] = ()
    refine_iters: int = 20
    map_size: tuple[int, int] | None = None
    layers: str | re.Pattern[str] | None = None

    needs_text_attention = False  # whether to compute `Prompt.attention`: one more call of the text encoder
    waits = False  # whether to call `is_reached` after each refinement, which synchronizes with the device

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, least=0.0)
        object.__setattr__(self, "steps", checked_step_numbers("steps", self.steps))
        object.__setattr__(self, "refine_at", checked_step_numbers("refine_at", self.refine_at))
        if not is_int(self.refine_iters) or self.refine_iters < 0:
            raise ValueError(expected("refine_iters", "an integer >= 0", self.refine_iters))
        object.__setattr__(self, "step_range", checked_range(self.step_range))
        object.__setattr__(self, "map_size", checked_token_size("map_size", self.map_size))
        _check_layers(self.layers)

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The loss of one image, defined by the subclass.

        Args:
            maps: (h, w, s) float32, the cross-attention probabilities, mean over heads and layers.
            prompt: its prompt.

        Returns:
            A 0-d floating-point tensor, differentiable in `maps`.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether this prompt can be guided; if not, its loss is 0.

        Args:
            prompt: the prompt of one image.

        Returns:
            True or False.
        """
        return len(prompt) > 0

    def direction(self, gradient: Tensor, prompts: Sequence[Prompt], number: int) -> Tensor:
        """What the latents are moved against: the gradient. Controls override it; see `RandomDirection`.

        Args:
            gradient: (B, ...), that of every image's loss on its latents.
            prompts: the prompts of the B images.
            number: of this evaluation in the generation, from 0, refinements included.

        Returns:
            A tensor of the same shape.
        """
        return gradient

    def is_reached(self, loss: float, step: int) -> bool:
        """Whether the refinement at this step may stop early. Called only if `waits` is True.

        Args:
            loss: the latest loss of one image.
            step: the denoising step.

        Returns:
            True or False.
        """
        return False


@dataclass(frozen=True, kw_only=True)
class Custom(Guidance):
    """Guidance by a loss function of the user.

    Args:
        function: called with maps (h, w, s) and the `Prompt`, returns a 0-d loss; see `Guidance.loss`.
        text_attention: compute `Prompt.attention`.
        alpha: see `Guidance`.
        steps: see `Guidance`.
        step_range: see `Guidance`.
        refine_at: see `Guidance`.
        refine_iters: see `Guidance`.
        map_size: see `Guidance`.
        layers: see `Guidance`.

    Raises:
        TypeError: `function` cannot be called, or a setting has the wrong type.
        ValueError: a setting of `Guidance` is not allowed.
    """

    function: Callable[[Tensor, Prompt], Tensor]
    text_attention: bool = False

    def __post_init__(self) -> None:
        require_callable("function", self.function, "a callable (maps, prompt) -> loss")
        require_bool("text_attention", self.text_attention)
        super().__post_init__()

    @property
    def needs_text_attention(self) -> bool:  # type: ignore[override]  # a constant in the other methods
        """Whether to compute `Prompt.attention`."""
        return self.text_attention

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The user's loss.

        Args:
            maps: (h, w, s) float32.
            prompt: its prompt.

        Returns:
            What `function` returns.
        """
        return self.function(maps, prompt)


def _check_layers(layers: object) -> None:
    """Refuse what is no regular expression."""
    if layers is None or isinstance(layers, re.Pattern):
        return
    what = r"None or a regular expression for names of layers, such as r'^transformer_blocks\.9\.'"
    if not isinstance(layers, str):
        raise TypeError(expected("layers", what, layers))
    if not layers:
        raise ValueError(expected("layers", what, layers))
    try:
        re.compile(layers)
    except re.error as error:
        raise ValueError(f"{expected('layers', what, layers)}: {error}") from None


def as_guidance(guidance: Any) -> Guidance:
    """A `Guidance` unchanged, or a callable (maps, prompt) -> loss as `Custom` with default settings."""
    if isinstance(guidance, Guidance):
        return guidance
    if callable(guidance) and not isinstance(guidance, type):
        return Custom(function=guidance)
    raise TypeError(expected("guidance", "a Guidance, such as TSAM(), or a callable (maps, prompt) -> loss", guidance))


def checked_range(step_range: Any) -> tuple[float, float]:
    """(first, last) as floats."""
    if not isinstance(step_range, (tuple, list)) or len(step_range) != 2:
        raise TypeError(expected("step_range", "a pair (first, last) of numbers >= 0", step_range))
    for number in step_range:
        require_number("step_range", number, least=0.0)
    return float(step_range[0]), float(step_range[1])
