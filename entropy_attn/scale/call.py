"""What a scale policy is asked, and what it may answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal, NamedTuple

import torch

Kind = Literal["self", "cross", "joint"]


@dataclass(frozen=True)
class CallInfo:
    """What a policy may look at: one attention call of one layer.

    `train_tokens` is the number of image tokens that the layer attends to at the model's training size, or None where
    that is not known: for cross-attention, whose keys are text, and for a model that does not state its training size.
    `text_tokens` counts the text tokens among the keys; in joint attention `text_start` is the first of them, or None
    where that is not known or differs within the batch.
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
    text_start: int | None = None

    @property
    def image_rows(self) -> slice:
        """The queries that are tokens of the picture: all of them, but where text and picture attend together."""
        image_tokens = self.seqlen_k - self.text_tokens
        if self.kind != "joint" or self.seqlen_q == image_tokens:
            return slice(0, self.seqlen_q)
        if self.seqlen_q != self.seqlen_k or self.text_start not in (0, image_tokens):
            where = "at no known place" if self.text_start is None else f"from {self.text_start} on"
            raise ValueError(
                f"joint-attention layer {self.layer!r}: which of its {self.seqlen_q} queries are the picture's is not "
                f"known; of its {self.seqlen_k} keys {self.text_tokens} are text, {where}"
            )
        start = self.text_tokens if self.text_start == 0 else 0
        return slice(start, start + image_tokens)


class RowScale(NamedTuple):
    """In joint attention, the scale of the rows of the picture and that of the text's; None is the model's own."""

    image: float | torch.Tensor | None
    text: float | torch.Tensor | None = None


Scale = float | torch.Tensor | RowScale | None
Policy = Callable[[CallInfo], Scale]


def needs_train_tokens(policy: Policy | None) -> bool:
    """Whether the policy goes by the token counts at training that a call states.

    A policy says so with an attribute of this name; one without it is not asked.
    """
    return bool(getattr(policy, "needs_train_tokens", False))


def resolve_scale(policy: Policy | None, info: CallInfo) -> Scale:
    """The policy's scale for this call, checked: None, a float, or a floating-point tensor of shape () or (heads,).

    Or, for a call whose text has rows of its own, two such in a `RowScale`.
    """
    if policy is None:
        return None
    scale = policy(info)
    if not isinstance(scale, RowScale):
        return _checked(scale, policy, info)
    image, text = (_checked(each, policy, info) for each in scale)
    rows = info.image_rows
    return image if rows == slice(0, info.seqlen_q) else RowScale(image, text)


def _checked(scale: object, policy: Policy, info: CallInfo) -> float | torch.Tensor | None:
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
        f"scale policy {policy!r} returned {returned} for layer {info.layer!r}: None, a finite number, a "
        f"floating-point tensor of shape () or ({info.num_heads},), one scale a head, or a RowScale of those is needed"
    )
