"""The input of a scale policy, and the check of its output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

import torch

from entropy_attn.scale.key_groups import KeyGroups
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
        text: where the text tokens are among the keys, and among the queries of joint attention: "first", "last" or
            "all"; None where there are none.
        latent_size: (rows, columns) of the image in latent cells; None if unknown.
        timestep: the scheduler's timestep of this step, from 1000 for noise to 0. None if it is not known, or if no
            policy asked for it by an attribute `needs_timestep = True`: the host has to wait for the device to read it.
        sigma: the scheduler's noise level of this step: the standard deviation of the noise beside a signal that has
            the weight 1 (Stable Diffusion), infinite for noise alone, or the noise's share from 1 to 0 (flow matching).
            None if it is not known, or if no policy asked for it by an attribute `needs_sigma = True`.
        num_steps: number of steps of the generation, counted as `step` is. None if it is not known.
        batch: number of samples B of the call. None in a graph of torch.compile that asks for scales of heads alone:
            without recorders and a mix, and if no policy has one of the attributes `gives_sample_scales`,
            `gives_key_groups` and `needs_branches`.
        branches: for each sample its branch of guidance, "cond" or "uncond"; "all" where the batch has none. None if no
            policy asked for them by an attribute `needs_branches = True`.
        block: number of the layer's block, from 0, among the blocks that have a routed layer, in the order in which the
            model runs them; layers with one parent are one block. None if it is not known.
        num_blocks: number of these blocks.
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
    text: Literal["first", "last", "all"] | None = None
    latent_size: tuple[int, int] | None = None
    timestep: float | None = None
    sigma: float | None = None
    num_steps: int | None = None
    batch: int | None = None
    branches: tuple[str, ...] | None = None
    block: int | None = None
    num_blocks: int | None = None

    @property
    def branch(self) -> str | None:
        """The branch of all samples of the call; None where they are of several, or not known."""
        return self.branches[0] if self.branches is not None and len(set(self.branches)) == 1 else None

    @property
    def text_keys(self) -> tuple[int, int] | None:
        """The keys (start, stop) of the text; None where there are none, or where they are is not known."""
        if self.text is None or not self.text_tokens:
            return None
        start = self.seqlen_k - self.text_tokens if self.text == "last" else 0
        return start, start + self.text_tokens

    @property
    def image_rows(self) -> tuple[int, int]:
        """The queries (start, stop) of the generated image."""
        text_first = self.text == "first" and self.kind == "joint" and self.seqlen_q == self.seqlen_k
        start = self.text_tokens if text_first else 0
        return start, start + self.picture_queries

    @property
    def picture_queries(self) -> int:
        """Number of queries of the generated image, without text and reference images."""
        text = self.text_tokens if self.kind == "joint" and self.seqlen_q == self.seqlen_k else 0
        return self.seqlen_q - text - self.reference_tokens

    @property
    def picture_keys(self) -> int:
        """Number of keys of the generated image, without text and reference images; 0 in cross-attention."""
        return 0 if self.kind == "cross" else self.seqlen_k - self.text_tokens - self.reference_tokens


Scale = float | torch.Tensor | KeyGroups | None
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


def policies_in(policy: Policy | None) -> tuple[Policy, ...]:
    """The policies that a policy is made of, or itself; none for None.

    Args:
        policy: a scale policy, or None. One that is made of others has them in an attribute `inner`.

    Returns:
        Every policy that is not made of others, in order.
    """
    if policy is None:
        return ()
    inner = getattr(policy, "inner", None)
    return (policy,) if inner is None else tuple(each for part in inner for each in policies_in(part))


def any_policy(policy: Policy | None, attribute: str) -> bool:
    """Whether a policy, or one that it is made of, has an attribute that is true, such as `needs_timestep`."""
    return any(getattr(each, attribute, False) for each in with_inner(policy))


def with_inner(policy: Policy | None) -> tuple[Policy, ...]:
    """A policy and all that it is made of, the outer ones first; none for None."""
    if policy is None:
        return ()
    return policy, *(each for part in getattr(policy, "inner", ()) for each in with_inner(part))


def resolve_scale(policy: Policy | None, info: CallInfo) -> Scale:
    """Call a policy and check what it returns.

    Args:
        policy: a scale policy, or None for the model's default scale.
        info: the attention call.

    Returns:
        None, a finite float, a floating-point tensor of shape (), (H,) or (B, H), or `KeyGroups` with one of these as
        `scale`.

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
    if isinstance(scale, KeyGroups):
        return replace(scale, scale=_checked(scale.scale, policy, info))
    return _checked(scale, policy, info)


def _checked(scale: object, policy: Policy, info: CallInfo) -> float | torch.Tensor | None:
    if isinstance(scale, torch.Tensor):
        per_sample = info.batch is not None and tuple(scale.shape) == (info.batch, info.num_heads)
        if scale.is_floating_point() and (per_sample or tuple(scale.shape) in ((), (info.num_heads,))):
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
    heads = f"({info.num_heads},)"
    shapes = f"() or {heads}" if info.batch is None else f"(), {heads} or ({info.batch}, {info.num_heads})"
    if info.batch is None and isinstance(scale, torch.Tensor) and scale.dim() == 2:
        got += (
            "; a scale for each sample is no part of a graph of torch.compile that is made for scales of heads alone: "
            "give the policy an attribute gives_sample_scales = True"
        )
    raise error(
        f"scale of policy {policy!r} for layer {info.layer!r}: expected None, KeyGroups, a finite number, or a "
        f"floating-point tensor of shape {shapes}, got {got}"
    )
