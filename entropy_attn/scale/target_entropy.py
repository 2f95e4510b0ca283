"""A policy that holds the entropy at its value at the training size, by what the last denoising step measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from entropy_attn.display import Settings
from entropy_attn.scale.call import CallInfo
from entropy_attn.validation import checked_clamp, require_int, require_one_of


@dataclass(frozen=True)
class TargetEntropy(Settings):
    """The scale at which a head or layer has the entropy of the training size, from the statistics of the last step.

    With u = scale**2 the entropy H falls at the rate dH/du = -V / (2 u), where V is the variance of the logits under
    the softmax; for Gaussian logits H = ln N - V / 2, a straight line in u. One Newton step from the step before, which
    ran at the factor f and measured V, to the entropy H(1) - ln(N / T) gives the factor

        sqrt(1 + 2 ln(N / T) f**2 / V)    on the default scale.

    ln(N / T) is what the entropy gains where N keys are like T, `docs/theory.md`. `LogN` is the same formula with
    ln T for V / (2 f**2), the spread at which a scale of its form is exact. Where one or a few keys have all the weight
    the entropy gains less than ln(N / T), and this policy sharpens too much; where attention is nearly uniform no
    factor is enough. `clamp` bounds both.

    The first step of a generation has the default scale. Each step computes two statistics of every call, in the same
    pass, of all rows of the batch together; no profile is needed, and the host does not wait for the device. One object
    serves one pipeline at a time.

    Args:
        train_tokens: T, an integer, or "auto" for `CallInfo.train_tokens` of each call. Text tokens among the keys
            count in both N and T.
        per: "head" gives each head its own scale, "layer" all heads of a layer the same.
        clamp: (low, high), bounds on the factor; either may be None.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `train_tokens` is less than 1, `per` is unknown, or `clamp` is not 0 <= low <= high.
    """

    train_tokens: int | Literal["auto"] = "auto"
    per: Literal["head", "layer"] = "head"
    clamp: tuple[float | None, float | None] = (0.5, 2.0)

    follows: ClassVar[bool] = True  # the router tells it of the statistics

    def __post_init__(self) -> None:
        if self.train_tokens != "auto":
            require_int("train_tokens", self.train_tokens, 1, "'auto' or ")
        require_one_of("per", self.per, ("head", "layer"))
        object.__setattr__(self, "clamp", checked_clamp(self.clamp))
        object.__setattr__(self, "_measured", {})

    @property
    def needs_train_tokens(self) -> bool:
        """Whether T is read from `CallInfo.train_tokens`."""
        return self.train_tokens == "auto"

    def begin(self, prompts: object) -> None:
        """A generation begins: what was measured before is forgotten.

        Args:
            prompts: not used.
        """
        self._history.clear()

    def wants_statistics(self, info: CallInfo) -> bool:
        """Whether the entropy and the variance of a call are of use.

        Args:
            info: the attention call.

        Returns:
            False at the training size, and where T is not known.
        """
        return self._excess(info) not in (None, 0.0)

    def learn(self, info: CallInfo, scale: float | Tensor, entropy: Tensor, variance: Tensor) -> None:
        """Take in the statistics of a call, without waiting for the device.

        Args:
            info: the attention call.
            scale: the scale that was used, a number or a tensor of shape (), (H,) or (B, H).
            entropy: (B, H, queries) in nats; not used, because the target moves with it.
            variance: (B, H, queries), of the logits under the softmax.
        """
        spread = variance.mean(dim=2)
        factor = torch.as_tensor(scale, dtype=spread.dtype, device=spread.device) * math.sqrt(info.head_dim)
        # V at the default scale, of each head
        of_default = (spread / factor.square().clamp(min=torch.finfo(spread.dtype).tiny)).mean(dim=0)
        if self.per == "layer":
            of_default = of_default.mean().expand_as(of_default)
        history = self._history.setdefault(_key(info), {})
        calls = history.setdefault(info.step, [])
        calls.append(of_default)
        for step in [step for step in history if step < info.step - 1 or step > info.step]:
            del history[step]  # of an earlier step, or generation

    def __call__(self, info: CallInfo) -> Tensor | None:
        """The scales of one call.

        Args:
            info: the attention call.

        Returns:
            A tensor (H,); None for the default scale, in the first step and at the training size.

        Raises:
            ValueError: T is not known.
        """
        excess = self._excess(info)
        if excess is None:
            raise ValueError(
                f"train_tokens: the token count at the training size of layer {info.layer!r} is not known; give "
                "TargetEntropy(train_tokens=...)"
            )
        calls = self._history.get(_key(info), {}).get(info.step - 1)
        if excess == 0.0 or not calls:
            return None
        spread = torch.stack(calls).mean(dim=0)  # of all calls of the step, such as those of both branches
        square = 1.0 + 2.0 * excess / spread.clamp(min=torch.finfo(spread.dtype).tiny)
        low, high = self.clamp
        factor = square.clamp(min=0.0).sqrt().clamp(low or 0.0, high)
        return factor / math.sqrt(info.head_dim)

    @property
    def _history(self) -> dict[tuple[str, int], dict[int, list[Tensor]]]:
        return cast(dict[tuple[str, int], dict[int, list[Tensor]]], vars(self)["_measured"])

    def _excess(self, info: CallInfo) -> float | None:
        """ln(N / T): how much too high the entropy is."""
        train = info.train_tokens if self.train_tokens == "auto" else self.train_tokens
        if train is None:
            return None
        return math.log(info.seqlen_k / (train + info.text_tokens))


def _key(info: CallInfo) -> tuple[str, int]:
    return info.layer, info.seqlen_k
