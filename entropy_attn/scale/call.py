"""What a scale policy is asked, and what it may answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch

from entropy_attn.validation import require_policy

Kind = Literal["self", "cross", "joint"]


@dataclass(frozen=True)
class CallInfo:
    """What a policy may look at: one attention call of one layer.

    `train_tokens` is the number of image tokens that the layer attends to at the model's training size, or None where
    that is not known: for cross-attention, whose keys are text, and for a model that does not state its training size.
    `text_tokens` counts the text tokens among the keys, and `reference_tokens` those of reference pictures, which
    follow the tokens of the picture itself. `step` counts the denoising steps of a generation from 0.
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
    reference_tokens: int = 0

    @property
    def picture_queries(self) -> int:
        """How many of the queries are of the picture that is generated: not of text, and not of reference pictures."""
        text = self.text_tokens if self.kind == "joint" and self.seqlen_q == self.seqlen_k else 0
        return self.seqlen_q - text - self.reference_tokens


Scale = float | torch.Tensor | None
Policy = Callable[[CallInfo], Scale]


def needs_train_tokens(policy: Policy | None) -> bool:
    """Whether the policy goes by the token counts at training that a call states.

    A policy says so with an attribute of this name; one without it is not asked.
    """
    if policy is not None:
        require_policy("policy", policy)
    return bool(getattr(policy, "needs_train_tokens", False))


def resolve_scale(policy: Policy | None, info: CallInfo) -> Scale:
    """The policy's scale for this call, checked: None, a float, or a floating-point tensor of shape () or (heads,)."""
    if not isinstance(info, CallInfo):
        raise TypeError(f"info={info!r}: a CallInfo is needed")
    if policy is None:
        return None
    require_policy("policy", policy)
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
