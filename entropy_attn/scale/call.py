"""The input of a scale policy, and the check of its output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch

from entropy_attn.validation import expected, require_policy

Kind = Literal["self", "cross", "joint"]


@dataclass(frozen=True)
class CallInfo:
    """One attention call of one layer, as a scale policy sees it.

    Args:
        layer: name of the attention module in the denoiser, "mid_block.attentions.0.transformer_blocks.0.attn1".
        kind: "self", "cross", or "joint" (image and text tokens attend to each other).
        seqlen_q: number of queries Nq.
        seqlen_k: number of keys Nk.
        num_heads: number of heads H.
        head_dim: dimension of a head D.
        train_tokens: number of image tokens that the layer attends to at the model's training size. None if unknown:
            for cross-attention, whose keys are text, and for a model that does not state its training size.
        text_tokens: number of text tokens among the keys.
        step: denoising step of the generation, from 0.
        reference_tokens: number of tokens of reference images; they follow the tokens of the generated image.
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
        """Number of queries of the generated image, without text and reference images."""
        text = self.text_tokens if self.kind == "joint" and self.seqlen_q == self.seqlen_k else 0
        return self.seqlen_q - text - self.reference_tokens


Scale = float | torch.Tensor | None
Policy = Callable[[CallInfo], Scale]


def needs_train_tokens(policy: Policy | None) -> bool:
    """Whether a policy reads `CallInfo.train_tokens`.

    Args:
        policy: a scale policy, or None. A policy states the need with an attribute `needs_train_tokens`.

    Returns:
        The value of that attribute; False without it.

    Raises:
        TypeError: `policy` cannot be called.
    """
    if policy is not None:
        require_policy("policy", policy)
    return bool(getattr(policy, "needs_train_tokens", False))


def resolve_scale(policy: Policy | None, info: CallInfo) -> Scale:
    """Call a policy and check what it returns.

    Args:
        policy: a scale policy, or None for the model's default scale.
        info: the attention call.

    Returns:
        None, a finite float, or a floating-point tensor of shape () or (H,).

    Raises:
        TypeError: `policy` cannot be called, `info` is no `CallInfo`, or the policy returned another type or dtype.
        ValueError: the policy returned a number that is not finite, or a tensor of another shape.
    """
    if not isinstance(info, CallInfo):
        raise TypeError(expected("info", "a CallInfo", info))
    if policy is None:
        return None
    require_policy("policy", policy)
    scale = policy(info)
    if type(scale) is float and math.isfinite(scale):  # the usual case; to ask for a Real takes the host longer
        return scale
    if isinstance(scale, torch.Tensor):
        if scale.is_floating_point() and tuple(scale.shape) in ((), (info.num_heads,)):
            return scale
        got = f"a tensor of {scale.dtype} and shape {tuple(scale.shape)}"
        error: type[Exception] = ValueError if scale.is_floating_point() else TypeError
    elif scale is None:
        return None
    else:
        if isinstance(scale, Real) and not isinstance(scale, bool) and math.isfinite(scale):
            return float(scale)
        got = repr(scale)
        error = ValueError if isinstance(scale, float) else TypeError
    raise error(
        f"scale of policy {policy!r} for layer {info.layer!r}: expected None, a finite number, or a floating-point "
        f"tensor of shape () or ({info.num_heads},), got {got}"
    )
