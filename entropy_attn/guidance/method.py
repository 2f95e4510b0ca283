"""What every guidance is: a loss on the cross-attention maps of one picture, and when and how far to follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from entropy_attn.prompts import Text
from entropy_attn.validation import checked_token_size, require_bool, require_number


@dataclass(frozen=True, eq=False)
class Prompt:
    """The text of one picture, as a loss sees it.

    text: its words by position (`find`, `words`, `ids`).
    tokens: positions 1..e-1 of the n real tokens: neither start mark, end mark nor padding.
    attention: (s, s) float32, the mean of the text encoder's self-attention over layers and heads, and over the
        encoders where there are two; None unless the guidance has `needs_text_attention`.
    previous: (h, w, s), the maps of this picture at the guided step before, without gradient; None at the first.
    """

    text: Text
    tokens: tuple[int, ...]
    attention: Tensor | None = None
    previous: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Base of what `guidance=` and `attach` take. A subclass has a `loss`; the rest says when and how far to follow it.

    alpha: length of the step on the latents; 0 changes nothing, and still measures the loss.
    steps: the denoising steps, from 0, before which the latents are updated. A generation may have fewer.
    step_range: alpha is multiplied by the root of a number that goes from the first to the second of these, evenly over
        all the denoising steps of the generation.
    refine_at: steps with `refine_iters` further updates before their normal one.
    map_size: (rows, columns) in tokens of the layers whose maps are averaged. None is the size that most
        cross-attention layers have, the one nearest to a quarter of the latent's sides where several have as many:
        (H / 32, W / 32) for a picture of H x W pixels in Stable Diffusion 1, 2 and XL.
    """

    alpha: float = 20.0
    steps: Iterable[int] = range(25)
    step_range: tuple[float, float] = (1.0, 0.5)
    refine_at: Iterable[int] = ()
    refine_iters: int = 20
    map_size: tuple[int, int] | None = None

    needs_text_attention = False  # whether `Prompt.attention` is to be computed: one more call of the text encoder

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, least=0.0)
        object.__setattr__(self, "steps", checked_steps("steps", self.steps))
        object.__setattr__(self, "refine_at", checked_steps("refine_at", self.refine_at))
        if isinstance(self.refine_iters, bool) or not isinstance(self.refine_iters, int) or self.refine_iters < 0:
            raise ValueError(f"refine_iters={self.refine_iters!r}: a whole number from 0 is needed")
        object.__setattr__(self, "step_range", checked_range(self.step_range))
        object.__setattr__(self, "map_size", checked_token_size("map_size", self.map_size))

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """0-d, differentiable in `maps` (h, w, s): the cross-attention probabilities of one picture, float32."""
        raise NotImplementedError

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether there is anything to guide in this prompt; where not, its loss is zero."""
        return len(prompt) > 0

    def is_reached(self, loss: float, step: int) -> bool:
        """Whether the refinement at this step may end early. Asked only where `waits` is true."""
        return False

    waits = False  # whether `is_reached` is asked after each refinement, which waits for the device


@dataclass(frozen=True, kw_only=True)
class Custom(Guidance):
    """A loss of the user's own.

    function: called with maps (h, w, s) and the `Prompt`, returns a 0-d loss; see `Guidance.loss`.
    text_attention: fill `Prompt.attention`.
    """

    function: Callable[[Tensor, Prompt], Tensor]
    text_attention: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function={self.function!r}: a callable (maps, prompt) -> loss is needed")
        require_bool("text_attention", self.text_attention)
        super().__post_init__()

    @property
    def needs_text_attention(self) -> bool:
        return self.text_attention

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        return self.function(maps, prompt)


def as_guidance(guidance: Any) -> Guidance:
    """A `Guidance` as it is, a callable (maps, prompt) -> loss as `Custom` with the default settings."""
    if isinstance(guidance, Guidance):
        return guidance
    if callable(guidance) and not isinstance(guidance, type):
        return Custom(function=guidance)
    raise TypeError(
        f"guidance={guidance!r}: a Guidance, such as TSAM(), or a callable (maps, prompt) -> loss is needed"
    )


def checked_steps(name: str, steps: Any) -> tuple[int, ...]:
    if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
        raise TypeError(f"{name}={steps!r}: step numbers, such as range(25) or (0, 10, 20), are needed")
    chosen = tuple(steps)
    if any(isinstance(step, bool) or not isinstance(step, int) or step < 0 for step in chosen):
        raise ValueError(f"{name}={steps!r}: whole numbers from 0 are needed")
    return tuple(sorted(set(chosen)))


def checked_range(step_range: Any) -> tuple[float, float]:
    if not isinstance(step_range, (tuple, list)) or len(step_range) != 2:
        raise TypeError(f"step_range={step_range!r}: a pair (first, last) of numbers is needed")
    for number in step_range:
        require_number("step_range", number, least=0.0)
    return float(step_range[0]), float(step_range[1])
