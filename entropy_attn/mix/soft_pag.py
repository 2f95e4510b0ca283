"""Attention led towards the identity, in chosen heads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from entropy_attn.mix.base import Identity, Mix
from entropy_attn.scale import CallInfo
from entropy_attn.validation import expected, is_int, require_number


@dataclass(frozen=True)
class SoftPAG(Mix):
    """Soft perturbed attention: in chosen heads out + alpha (value - out), attention with (1 - alpha) P + alpha I.

    It makes the prediction weaker, for a guidance that leads away from it: `ea.WeakPassGuidance` is one. alpha=1 in
    all heads of a layer is perturbed-attention guidance (Ahn et al., arXiv 2403.17377).

    Source: Ahn et al., "Fine-Grained Perturbation Guidance via Attention Head Selection", arXiv 2506.10978, which
    selects the heads by what they do to images (HeadHunter). In joint attention the rows of the image are led towards
    their own token, those of the text keep theirs.

    Args:
        alpha: how far, a number; 0 changes nothing, 1 is the value alone.
        heads: {regular expression: head numbers}, or an iterable of such pairs; the first one that is found in a
            layer's name decides, and layers with none of them keep their answer. None is all heads.
        layers: the layers of the mix; those of cross-attention keep their answer.
        steps: the denoising steps of the mix, counted from 0; None is all.
        branch: the branch of guidance whose samples are mixed; None is all samples.

    Raises:
        TypeError: `alpha` is no number, or `heads` no mapping of patterns to numbers.
        ValueError: `alpha` is not finite, `heads` is empty, a pattern is no regular expression, a number is negative,
            or another argument of `Mix` is wrong.
    """

    alpha: float = 1.0
    heads: Mapping[str, Collection[int]] | Iterable[tuple[str, Collection[int]]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("alpha", self.alpha)
        if self.heads is not None:
            object.__setattr__(self, "heads", _checked_heads(self.heads))

    def other(self, info: CallInfo) -> Identity | None:
        """What the second answer of a call is computed from.

        Args:
            info: the attention call.

        Returns:
            `Identity()`; None for cross-attention, and where no head is chosen.
        """
        return None if info.kind == "cross" or self._heads_of(info) == () else Identity()

    def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
        """The formula above.

        Args:
            out: the first answer, (B, H, Nq, Dv).
            other: the values of the queries' own tokens, (B, H, Nq, Dv).
            value: not used.
            info: the attention call, for its heads.

        Returns:
            (B, H, Nq, Dv).

        Raises:
            ValueError: the layer does not have one of the heads.
        """
        chosen = self._heads_of(info)
        weight = torch.full((info.num_heads, 1, 1), self.alpha, dtype=out.dtype)
        if chosen is not None:
            if max(chosen) >= info.num_heads:
                raise ValueError(f"heads: layer {info.layer!r} has {info.num_heads} heads, got {max(chosen)}")
            others = torch.ones(info.num_heads, dtype=torch.bool)
            others[list(chosen)] = False
            weight[others] = 0.0
        return out + weight.to(out.device, non_blocking=True) * (other - out)

    def _heads_of(self, info: CallInfo) -> tuple[int, ...] | None:
        """The chosen heads of a layer; None for all of them."""
        if self.heads is None:
            return None
        pairs = cast(tuple[tuple[str, tuple[int, ...]], ...], self.heads)  # since __post_init__
        return next((heads for pattern, heads in pairs if re.search(pattern, info.layer)), ())


def _checked_heads(heads: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    what = "{regular expression: head numbers from 0}"
    try:
        pairs = [(pattern, numbers) for pattern, numbers in (heads.items() if isinstance(heads, Mapping) else heads)]
    except (TypeError, ValueError):
        raise TypeError(expected("heads", what, heads)) from None
    if not pairs:
        raise ValueError(expected("heads", f"{what} with at least one entry", heads))
    checked = []
    for pattern, numbers in pairs:
        if not isinstance(pattern, str) or isinstance(numbers, (str, bytes)) or not isinstance(numbers, Collection):
            raise TypeError(expected("heads", what, heads))
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{expected('heads', what, heads)}: {error}") from None
        if not numbers or not all(is_int(number) and number >= 0 for number in numbers):
            raise ValueError(expected("heads", what, heads))
        checked.append((pattern, tuple(sorted(set(numbers)))))
    return tuple(checked)
