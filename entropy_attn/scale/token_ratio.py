"""Policies that go by the number of tokens N against the number T at the training size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from entropy_attn.scale.call import CallInfo, Scale
from entropy_attn.validation import checked_clamp, require_bool, require_finite, require_int, require_one_of


@dataclass(frozen=True, kw_only=True)
class TokenRatio:
    """Base of the policies whose scale is f(N, T) / sqrt(head_dim); a subclass says what f is, in `_factor`.

    N is the number of image tokens among the keys, T the same at the training size; f(T, T) = 1.

    train_tokens: T. "auto" takes it from the call, layer by layer.
    strength: exponent on f; 0 is no change, 1 the formula, more than 1 exaggerates.
    direction: "up" only sharpens (pictures larger than the training size), "down" only flattens, "both" does both.
    clamp: (low, high) bounds of f to the power of strength, applied last; either may be None.

    Counts below two tokens are taken as two, for the logarithm of one is zero.
    """

    train_tokens: int | Literal["auto"] = "auto"
    strength: float = 1.0
    direction: Literal["both", "up", "down"] = "both"
    clamp: tuple[float | None, float | None] | None = None

    def __post_init__(self) -> None:
        if self.train_tokens != "auto":
            require_int("train_tokens", self.train_tokens, 1, "'auto' or ")
        require_finite("strength", self.strength)
        require_one_of("direction", self.direction, ("both", "up", "down"))
        if self.clamp is not None:
            object.__setattr__(self, "clamp", checked_clamp(self.clamp))

    @property
    def needs_train_tokens(self) -> bool:
        return self.train_tokens == "auto"

    def __call__(self, info: CallInfo) -> Scale:
        return self.ratio(info) / math.sqrt(info.head_dim)

    def ratio(self, info: CallInfo) -> float | torch.Tensor:
        """The scale as a multiple of 1/sqrt(head_dim). In code that is being compiled it is a 0-d tensor."""
        tokens, train_tokens = self._token_counts(info)
        if torch.compiler.is_compiling():
            return self._traced_ratio(tokens, train_tokens)
        ratio = self._factor(math.log(max(tokens, 2)), math.log(max(train_tokens, 2))) ** self.strength
        if (self.direction == "up" and tokens < train_tokens) or (self.direction == "down" and tokens > train_tokens):
            ratio = 1.0
        low, high = self.clamp or (None, None)
        if low is not None:
            ratio = max(ratio, low)
        return ratio if high is None else min(ratio, high)

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        """f from ln N and ln T, by operators alone: they are floats, or 0-d tensors in code that is being compiled."""
        raise NotImplementedError

    def _traced_ratio(self, tokens: int, train_tokens: int) -> torch.Tensor:
        """The same from symbolic counts: a float would be compiled in, and each new size compile the model anew."""
        n, t = (torch.scalar_tensor(count, dtype=torch.float64) for count in (tokens, train_tokens))
        ratio = self._factor(n.clamp_min(2).log(), t.clamp_min(2).log()) ** self.strength
        if self.direction != "both":
            ratio = torch.where(n < t if self.direction == "up" else n > t, 1.0, ratio)
        low, high = self.clamp or (None, None)
        return ratio if low is None and high is None else ratio.clamp(low, high)

    def _token_counts(self, info: CallInfo) -> tuple[int, int]:
        """N and T of one call, counted the same way."""
        tokens = info.seqlen_k - (info.text_tokens if info.kind == "joint" else 0)
        if self.train_tokens != "auto":
            return tokens, int(self.train_tokens)
        if info.train_tokens is None:
            own = type(self).__name__
            if info.kind == "cross":
                cause = f"its keys are text tokens, whose number at training is not known: give {own}(train_tokens=...)"
            else:
                cause = f"its tokens at training are not known: give apply(train_size=...) or {own}(train_tokens=...)"
            raise ValueError(f"{own}(train_tokens='auto') on {info.kind}-attention layer {info.layer!r}: {cause}")
        return tokens, info.train_tokens


@dataclass(frozen=True, kw_only=True)
class _KeyRatio(TokenRatio):
    """May count all keys of joint attention.

    count_text_tokens: in joint attention, count the text tokens in N and in T (T is then the call's image tokens at
        the training size, plus its text tokens) instead of the image tokens alone.
    """

    count_text_tokens: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool("count_text_tokens", self.count_text_tokens)

    def _token_counts(self, info: CallInfo) -> tuple[int, int]:
        tokens, train_tokens = super()._token_counts(info)
        if not self.count_text_tokens or info.kind != "joint":
            return tokens, train_tokens
        # A T that was given is the whole count.
        own = train_tokens + info.text_tokens if self.train_tokens == "auto" else train_tokens
        return tokens + info.text_tokens, own


@dataclass(frozen=True, kw_only=True)
class LogN(_KeyRatio):
    """Entropy-preserving scale for pictures of another size than the training size.

    sqrt(ln N / ln T) / sqrt(head_dim), N being the tokens attended to and T the same at the training size: equal to
    1/sqrt(head_dim) at N = T and rising with N. From Jin et al., "Training-free Diffusion Model Adaptation for
    Variable-Sized Text-to-Image Synthesis", NeurIPS 2023, arXiv 2306.08645. Lumina-Next calls it proportional
    attention, and I-Max (arXiv 2410.07536) and HiFlow take it to Flux with `count_text_tokens=True`.

    train_tokens, strength, direction, clamp: as in `TokenRatio`. strength=2 is `LogNoRoot`.
    count_text_tokens: in joint attention, count the text tokens in N and in T (T is then the call's image tokens at
        the training size, plus its text tokens) instead of the image tokens alone.
    """

    train_tokens: int | Literal["auto"] = field(default="auto", kw_only=False)

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return (ln_n / ln_t) ** 0.5


@dataclass(frozen=True, kw_only=True)
class LogNoRoot(_KeyRatio):
    """The paper's logarithm without its root: (ln N / ln T) / sqrt(head_dim).

    What the attention-temperature nodes for ComfyUI compute, one of which notes that it is too strong above 1.5 times
    the training size. Options as in `LogN`, of which this is strength=2.
    """

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return ln_n / ln_t


@dataclass(frozen=True, kw_only=True)
class Power(_KeyRatio):
    """A power of the token ratio: (N / T)**p / sqrt(head_dim).

    No paper stands behind it: it is a knob for trying scales that rise faster than the logarithm's. Near N = T,
    p = 1 / (2 ln T) is as steep as `LogN` (0.06 for T = 4096). Options as in `LogN`.

    p: the exponent; 0 is no change. Twice p is the exponent on the ratio of the pictures' sides.
    """

    p: float = field(kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("p", self.p)

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return math.e ** (self.p * (ln_n - ln_t))


@dataclass(frozen=True, kw_only=True)
class YaRN(TokenRatio):
    """The attention temperature of YaRN: (0.1 ln s + 1)**2 / sqrt(head_dim), s = sqrt(N / T) being the ratio of sides.

    From Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", ICLR 2024, arXiv 2309.00071,
    whose fit 0.1 ln s + 1 multiplies queries and keys alike, hence the square; s is their ratio of context lengths.
    DyPE (Issachar et al., arXiv 2510.20766) does so in Flux, axis by axis of the rotary embedding and with the ratio
    along that axis, which leaves the channels of the third axis as they are; here it is one number for all channels,
    with the geometric mean of the two ratios. Positions are not touched: neither method is whole without its own.

    train_tokens, strength, direction, clamp: as in `TokenRatio`. The fit is for s >= 1, so that direction is "up"
    unless something else is given. Text tokens are no part of the ratio.
    """

    direction: Literal["both", "up", "down"] = "up"

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return (0.05 * (ln_n - ln_t) + 1.0) ** 2
