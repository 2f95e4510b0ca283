"""DyPE's factor on the logits, which falls as the image emerges."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from entropy_attn.scale.call import CallInfo
from entropy_attn.scale.token_ratio import YaRN
from entropy_attn.validation import require_number


@dataclass(frozen=True, kw_only=True)
class DyPE(YaRN):
    """`YaRN` with a time: (1 + 0.1 ln(s) t**exponent)**2 / sqrt(D), s = sqrt(N / T), t from 1 (noise) to 0 (image).

    This is the factor on the logits alone. DyPE is a method for positions: it moves the frequencies of the rotary
    embedding with t**2, from extrapolated ones to those of training, and that is no scale; the images of the paper
    cannot be had by this policy.

    Source: Issachar et al., "DyPE: Dynamic Position Extrapolation for Ultra High Resolution Diffusion", arXiv
    2510.20766, with t**2 for the frequencies. Their code keeps the factor 0.1 ln s + 1 of queries and keys at every t
    (exponent=0, which is `YaRN`), with s by axis; ComfyUI-DyPE and InvokeAI let it fall with t**2, with the larger of
    the two s. Here s is the geometric mean, and all channels get the factor.

    Args:
        exponent: on t, a number >= 0; 0 is no change with time.
        train_tokens: T, an integer, or "auto" for `CallInfo.train_tokens` of each call.
        strength: exponent on f: 0 is no change, 1 the formula, more than 1 exaggerates it.
        direction: "up" only sharpens (N > T), "down" only flattens (N < T), "both" does both.
        clamp: (low, high), bounds on f**strength, applied last; either may be None.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `exponent` is negative, `train_tokens` is less than 1, a number is not finite, `direction` is
            unknown, or `clamp` is not 0 <= low <= high.
    """

    exponent: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("exponent", self.exponent, least=0.0)

    @property
    def needs_timestep(self) -> bool:
        """Whether `CallInfo.timestep` is read."""
        return self.exponent != 0.0

    def _factor_of(
        self, info: CallInfo, ln_n: float | torch.Tensor, ln_t: float | torch.Tensor
    ) -> float | torch.Tensor:
        if not self.needs_timestep:
            return self._factor(ln_n, ln_t)
        if info.timestep is None:
            raise ValueError(
                f"DyPE(exponent={self.exponent}): the timestep of layer {info.layer!r} is not known; give exponent=0, "
                "or YaRN()"
            )
        weight = (info.timestep / 1000.0) ** self.exponent
        return (1.0 + 0.05 * (ln_n - ln_t) * weight) ** 2
