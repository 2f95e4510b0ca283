"""Scale policies: which softmax scale an attention call gets, decided from its token counts.

A policy is any callable that takes a `CallInfo` and returns a float, a 0-d tensor, a tensor of one scale a head, or
None for the model's own scale. The ones here are frozen dataclasses: they print, compare and hash by their settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import torch

Kind = Literal["self", "cross", "joint"]


@dataclass(frozen=True)
class CallInfo:
    """What a policy may look at: one attention call of one layer.

    `train_tokens` is the number of image tokens that the layer attends to at the model's training size, or None where
    that is not known: for cross-attention, whose keys are text, and for a model that does not state its training size.
    `text_tokens` counts the text tokens among the keys.
    """

    layer: str
    kind: Kind
    seqlen_q: int
    seqlen_k: int
    num_heads: int
    head_dim: int
    train_tokens: int | None = None
    text_tokens: int = 0
    step: int = 0


Scale = float | torch.Tensor | None
Policy = Callable[[CallInfo], Scale]


@dataclass(frozen=True)
class Fixed:
    """The same scale for every call; `value=None` is the usual 1/sqrt(head_dim)."""

    value: float | None = None

    def __post_init__(self) -> None:
        if self.value is not None:
            _require_finite("value", self.value)

    def __call__(self, info: CallInfo) -> float:
        return 1.0 / math.sqrt(info.head_dim) if self.value is None else float(self.value)


@dataclass(frozen=True)
class LogN:
    """Entropy-preserving scale for pictures of another size than the training size.

    sqrt(ln N / (head_dim * ln T)), N being the tokens attended to and T the same at the training size: equal to
    1/sqrt(head_dim) at N = T and rising with N. From Jin et al., "Training-free Diffusion Model Adaptation for
    Variable-Sized Text-to-Image Synthesis", NeurIPS 2023, arXiv 2306.08645.

    train_tokens: T. "auto" takes it from the call, layer by layer.
    strength: exponent on the ratio sqrt(ln N / ln T); 1 is the paper, 0 no change, 2 the ratio without its root.
    direction: "up" only sharpens (pictures larger than the training size), "down" only flattens, "both" does both.
    clamp: (low, high) bounds of the ratio to 1/sqrt(head_dim), applied last; either may be None.
    count_text_tokens: in joint attention, count the text tokens in N and in T (T is then the call's image tokens at
        the training size, plus its text tokens) instead of the image tokens alone.

    Counts below two tokens are taken as two, for the logarithm of one is zero.
    """

    train_tokens: int | Literal["auto"] = "auto"
    strength: float = 1.0
    direction: Literal["both", "up", "down"] = "both"
    clamp: tuple[float | None, float | None] | None = None
    count_text_tokens: bool = False

    def __post_init__(self) -> None:
        if self.train_tokens != "auto":
            if not isinstance(self.train_tokens, Integral) or isinstance(self.train_tokens, bool):
                raise TypeError(f"train_tokens={self.train_tokens!r}: 'auto' or an integer is needed")
            if self.train_tokens < 1:
                raise ValueError(f"train_tokens={self.train_tokens}: at least 1 is needed")
        _require_finite("strength", self.strength)
        if self.direction not in ("both", "up", "down"):
            raise ValueError(f"direction={self.direction!r}: 'both', 'up' or 'down' is needed")
        if not isinstance(self.count_text_tokens, bool):
            raise TypeError(f"count_text_tokens={self.count_text_tokens!r}: True or False is needed")
        if self.clamp is not None:
            object.__setattr__(self, "clamp", _checked_clamp(self.clamp))

    def __call__(self, info: CallInfo) -> Scale:
        return self.ratio(info) / math.sqrt(info.head_dim)

    def ratio(self, info: CallInfo) -> float | torch.Tensor:
        """The scale as a multiple of 1/sqrt(head_dim). In code that is being compiled it is a 0-d tensor."""
        tokens, train_tokens = self._token_counts(info)
        if torch.compiler.is_compiling():
            return self._traced_ratio(tokens, train_tokens)
        ratio = math.sqrt(math.log(max(tokens, 2)) / math.log(max(train_tokens, 2))) ** self.strength
        if (self.direction == "up" and tokens < train_tokens) or (self.direction == "down" and tokens > train_tokens):
            ratio = 1.0
        low, high = self.clamp or (None, None)
        if low is not None:
            ratio = max(ratio, low)
        return ratio if high is None else min(ratio, high)

    def _traced_ratio(self, tokens: int, train_tokens: int) -> torch.Tensor:
        """The same from symbolic counts: a float would be compiled in, and each new size compile the model anew."""
        n, t = (torch.scalar_tensor(count, dtype=torch.float64) for count in (tokens, train_tokens))
        ratio = (n.clamp_min(2).log() / t.clamp_min(2).log()).sqrt() ** self.strength
        if self.direction != "both":
            ratio = torch.where(n < t if self.direction == "up" else n > t, 1.0, ratio)
        low, high = self.clamp or (None, None)
        return ratio if low is None and high is None else ratio.clamp(low, high)

    def _token_counts(self, info: CallInfo) -> tuple[int, int]:
        """N and T of one call, counted the same way."""
        text = info.text_tokens if info.kind == "joint" else 0
        tokens = info.seqlen_k if self.count_text_tokens else info.seqlen_k - text
        if self.train_tokens != "auto":
            return tokens, int(self.train_tokens)
        if info.train_tokens is None:
            if info.kind == "cross":
                cause = "its keys are text tokens, whose number at training is not known: give LogN(train_tokens=...)"
            else:
                cause = "its tokens at training are not known: give apply(train_size=...) or LogN(train_tokens=...)"
            raise ValueError(f"LogN(train_tokens='auto') on {info.kind}-attention layer {info.layer!r}: {cause}")
        return tokens, info.train_tokens + (text if self.count_text_tokens else 0)


def resolve_scale(policy: Policy | None, info: CallInfo) -> Scale:
    """The policy's scale for this call, checked: None, a float, or a floating-point tensor of shape () or (heads,)."""
    if policy is None:
        return None
    scale = policy(info)
    if isinstance(scale, torch.Tensor):
        if scale.is_floating_point() and tuple(scale.shape) in ((), (info.num_heads,)):
            return scale
        returned = f"a tensor of {scale.dtype} and shape {tuple(scale.shape)}"
        error: type[Exception] = ValueError if scale.is_floating_point() else TypeError
    elif scale is None:
        return None
    else:
        if isinstance(scale, Real) and not isinstance(scale, bool) and math.isfinite(scale):
            return float(scale)
        returned = repr(scale)
        error = ValueError if isinstance(scale, float) else TypeError
    raise error(
        f"scale policy {policy!r} returned {returned} for layer {info.layer!r}: None, a finite number, or a "
        f"floating-point tensor of shape () or ({info.num_heads},), one scale a head, is needed"
    )


def token_grid(num_tokens: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the tokens of a layer that sees `num_tokens` of a latent of this size.

    The layers of a UNet see the latent halved a whole number of times, an odd length rounded up each time. The number
    of tokens says how often.
    """
    factor = _downsampling(num_tokens, latent_size)
    return math.ceil(latent_size[0] / factor), math.ceil(latent_size[1] / factor)


def training_tokens(num_tokens: int, latent_size: tuple[int, int], train_size: tuple[int, int]) -> int:
    """T of a layer that has `num_tokens` at `latent_size`: its tokens at the latent size used in training."""
    factor = _downsampling(num_tokens, latent_size)
    return math.ceil(train_size[0] / factor) * math.ceil(train_size[1] / factor)


def _downsampling(num_tokens: int, latent_size: tuple[int, int]) -> int:
    height, width = latent_size
    # More tokens than latent cells cannot come from halving.
    halvings = max(0, round(0.5 * math.log2(height * width / num_tokens)))
    # What odd lengths add when rounded up can be a good part of a very small grid: then a neighbour fits exactly.
    for candidate in (halvings, halvings + 1, halvings - 1):
        if math.ceil(height / 2**candidate) * math.ceil(width / 2**candidate) == num_tokens:
            return 2 ** max(0, candidate)
    return 2**halvings


def _require_finite(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: a number is needed")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: a finite number is needed")


def _checked_clamp(clamp: object) -> tuple[float | None, float | None]:
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        raise TypeError(f"clamp={clamp!r}: a pair (low, high) is needed, either of which may be None")
    for bound in clamp:
        if bound is not None:
            _require_finite("clamp", bound)
    low, high = clamp
    if low is not None and high is not None and low > high:
        raise ValueError(f"clamp={clamp!r}: low must not exceed high")
    return low, high
