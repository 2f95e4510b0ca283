"""Policies computed from the number of tokens N and the number T at the training size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from entropy_attn.display import Settings
from entropy_attn.scale.call import CallInfo, Scale
from entropy_attn.validation import checked_clamp, require_bool, require_int, require_number, require_one_of


@dataclass(frozen=True, kw_only=True)
class TokenRatio(Settings):
    """Base class of the policies f(N, T)**strength / sqrt(D); a subclass defines f in `_factor`.

    N is the number of image tokens among the keys, T that number at the training size; f(T, T) = 1. Counts less than 2
    are taken as 2, because ln 1 = 0.

    Args:
        train_tokens: T, an integer, or "auto" for `CallInfo.train_tokens` of each call.
        strength: exponent on f: 0 is no change, 1 the formula, more than 1 exaggerates it.
        direction: "up" only sharpens (N > T), "down" only flattens (N < T), "both" does both.
        clamp: (low, high), bounds on f**strength, applied last; either may be None.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `train_tokens` is less than 1, a number is not finite, `direction` is unknown, or `clamp` is not
            0 <= low <= high.
    """

    train_tokens: int | Literal["auto"] = "auto"
    strength: float = 1.0
    direction: Literal["both", "up", "down"] = "both"
    clamp: tuple[float | None, float | None] | None = None

    def __post_init__(self) -> None:
        if self.train_tokens != "auto":
            require_int("train_tokens", self.train_tokens, 1, "'auto' or ")
        require_number("strength", self.strength)
        require_one_of("direction", self.direction, ("both", "up", "down"))
        if self.clamp is not None:
            object.__setattr__(self, "clamp", checked_clamp(self.clamp))

    @property
    def needs_train_tokens(self) -> bool:
        """Whether T is read from `CallInfo.train_tokens`."""
        return self.train_tokens == "auto"

    def __call__(self, info: CallInfo) -> Scale:
        """The scale of one call.

        Args:
            info: the attention call.

        Returns:
            `ratio(info)` / sqrt(D).
        """
        return self.ratio(info) / math.sqrt(info.head_dim)

    def ratio(self, info: CallInfo) -> float | torch.Tensor:
        """The factor on 1 / sqrt(D): f(N, T)**strength, limited by `direction` and `clamp`.

        Args:
            info: the attention call. It must state `train_tokens` if this policy's `train_tokens` is "auto".

        Returns:
            A float; a 0-d float64 tensor while torch.compile traces the call.
        """
        tokens, train_tokens = self._token_counts(info)
        if torch.compiler.is_compiling():
            return self._traced_ratio(tokens, train_tokens, info)
        ratio = self._factor_of(info, math.log(max(tokens, 2)), math.log(max(train_tokens, 2))) ** self.strength
        if (self.direction == "up" and tokens < train_tokens) or (self.direction == "down" and tokens > train_tokens):
            ratio = 1.0
        low, high = self.clamp or (None, None)
        if low is not None:
            ratio = max(ratio, low)
        return ratio if high is None else min(ratio, high)

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        """f from ln N and ln T: floats, or 0-d tensors under torch.compile, so operators only."""
        raise NotImplementedError

    def _factor_of(
        self, info: CallInfo, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor
    ) -> float | torch.Tensor:
        """f of a call, for formulas that depend on more than N and T."""
        return self._factor(ln_n, ln_t)

    def _traced_ratio(self, tokens: int, train_tokens: int, info: CallInfo) -> torch.Tensor:
        """`ratio` from symbolic counts: a float would be a constant in the graph, and each new size would recompile."""
        n, t = (torch.scalar_tensor(count, dtype=torch.float64) for count in (tokens, train_tokens))
        ratio = self._factor_of(info, n.clamp_min(2).log(), t.clamp_min(2).log()) ** self.strength
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
            name = type(self).__name__
            if info.kind == "cross":
                cause = f"its keys are text tokens, whose number in training is unknown: give {name}(train_tokens=...)"
            else:
                cause = (
                    f"its token count in training is unknown: give apply(train_size=...) or {name}(train_tokens=...)"
                )
            raise ValueError(f"{name}(train_tokens='auto') on {info.kind}-attention layer {info.layer!r}: {cause}")
        return tokens, info.train_tokens


@dataclass(frozen=True, kw_only=True)
class _KeyRatio(TokenRatio):
    """Adds `count_text_tokens`: count all keys of joint attention."""

    count_text_tokens: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool("count_text_tokens", self.count_text_tokens)

    def _token_counts(self, info: CallInfo) -> tuple[int, int]:
        tokens, train_tokens = super()._token_counts(info)
        if not self.count_text_tokens or info.kind != "joint":
            return tokens, train_tokens
        # An explicit T is the whole count.
        text = info.text_tokens if self.train_tokens == "auto" else 0
        return tokens + info.text_tokens, train_tokens + text


@dataclass(frozen=True, kw_only=True)
class LogN(_KeyRatio):
    """Entropy-preserving scale for images of another size than the training size: sqrt(ln N / ln T) / sqrt(D).

    N is the number of image tokens among the keys, T that number at the training size. The scale is 1 / sqrt(D) at
    N = T and rises with N.

    Source: Jin et al., "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis", NeurIPS
    2023, arXiv 2306.08645, the scaling factor lambda = sqrt(log_T N / d). Lumina-Next calls it proportional attention;
    I-Max (arXiv 2410.07536) and HiFlow use it in Flux with `count_text_tokens=True`. strength=2 is `LogNoRoot`.

    Args:
        train_tokens: T, an integer, or "auto" for `CallInfo.train_tokens` of each call.
        strength: exponent on f: 0 is no change, 1 the formula, more than 1 exaggerates it.
        direction: "up" only sharpens (N > T), "down" only flattens (N < T), "both" does both.
        clamp: (low, high), bounds on f**strength, applied last; either may be None.
        count_text_tokens: in joint attention, count the text tokens in N and in T as well; a `train_tokens` that is
            given is then the whole count.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `train_tokens` is less than 1, a number is not finite, `direction` is unknown, or `clamp` is not
            0 <= low <= high.
    """

    train_tokens: int | Literal["auto"] = field(default="auto", kw_only=False)

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return (ln_n / ln_t) ** 0.5


@dataclass(frozen=True, kw_only=True)
class LogNoRoot(_KeyRatio):
    """`LogN` without the square root: (ln N / ln T) / sqrt(D).

    Source: attention-temperature nodes for ComfyUI; one notes that it is too strong above 1.5 times the training size.
    The same as `LogN` with strength=2.

    Args:
        train_tokens: T, an integer, or "auto" for `CallInfo.train_tokens` of each call.
        strength: exponent on f: 0 is no change, 1 the formula, more than 1 exaggerates it.
        direction: "up" only sharpens (N > T), "down" only flattens (N < T), "both" does both.
        clamp: (low, high), bounds on f**strength, applied last; either may be None.
        count_text_tokens: in joint attention, count the text tokens in N and in T as well; a `train_tokens` that is
            given is then the whole count.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `train_tokens` is less than 1, a number is not finite, `direction` is unknown, or `clamp` is not
            0 <= low <= high.
    """

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return ln_n / ln_t


@dataclass(frozen=True, kw_only=True)
class Power(_KeyRatio):
    """A power of the token ratio: (N / T)**p / sqrt(D).

    Source: none; it is for trying scales that rise faster than a logarithm. Near N = T, p = 1 / (2 ln T) is as steep as
    `LogN` (0.06 for T = 4096).

    Args:
        p: the exponent; 0 is no change. 2 * p is the exponent on the ratio of the images' sides.
        train_tokens: T, an integer, or "auto" for `CallInfo.train_tokens` of each call.
        strength: exponent on f: 0 is no change, 1 the formula, more than 1 exaggerates it.
        direction: "up" only sharpens (N > T), "down" only flattens (N < T), "both" does both.
        clamp: (low, high), bounds on f**strength, applied last; either may be None.
        count_text_tokens: in joint attention, count the text tokens in N and in T as well; a `train_tokens` that is
            given is then the whole count.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `train_tokens` is less than 1, a number is not finite, `direction` is unknown, or `clamp` is not
            0 <= low <= high.
    """

    p: float = field(kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("p", self.p)

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return math.e ** (self.p * (ln_n - ln_t))


@dataclass(frozen=True, kw_only=True)
class YaRN(TokenRatio):
    """The attention temperature of YaRN: (0.1 ln s + 1)**2 / sqrt(D), with s = sqrt(N / T), the ratio of sides.

    Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", ICLR 2024, arXiv
    2309.00071. Its fit sqrt(1 / t) = 0.1 ln s + 1, with s the ratio of context lengths, multiplies queries and keys
    both, hence the square. DyPE (Issachar et al., arXiv 2510.20766) applies it in Flux per axis of the rotary
    embedding, with the ratio along that axis, and leaves the channels of the third axis unchanged. Here one number,
    from the geometric mean of the two ratios, applies to all channels. Both methods also change the position embedding;
    this policy does not.

    The fit is for s >= 1, hence the default direction "up". Text tokens are never counted.

    Args:
        train_tokens: T, an integer, or "auto" for `CallInfo.train_tokens` of each call.
        strength: exponent on f: 0 is no change, 1 the formula, more than 1 exaggerates it.
        direction: "up" only sharpens (N > T), "down" only flattens (N < T), "both" does both.
        clamp: (low, high), bounds on f**strength, applied last; either may be None.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `train_tokens` is less than 1, a number is not finite, `direction` is unknown, or `clamp` is not
            0 <= low <= high.
    """

    direction: Literal["both", "up", "down"] = "up"

    def _factor(self, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor) -> float | torch.Tensor:
        return (0.05 * (ln_n - ln_t) + 1.0) ** 2
