"""One call of the AttentionInterface of transformers: what it asks for, in the words of torch's attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from entropy_attn.errors import Unroutable
from entropy_attn.routing.calls import AttentionArguments
from entropy_attn.scale import CallInfo, Policy, resolve_scale

# What models pass on to every attention function and what changes nothing here: the mask has the positions and the
# window, the keys are those of the cache already, and the rest is for other parts of the model.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "deterministic",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)


def arguments_of(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> AttentionArguments:
    """The call as torch's attention takes it. Signature and meaning are those of the "sdpa" function of transformers.

    Raises:
        Unroutable: it asks for dropout, or for anything that is not known here.
    """
    _refuse(module, dropout, others)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_causal = bool(is_causal) and attention_mask is None and query.shape[2] > 1
    if position_bias is not None:
        attention_mask = _with_bias(attention_mask, position_bias, is_causal)
        is_causal = False
    grouped = key.shape[1] != query.shape[1]
    return AttentionArguments(query, key, value, attention_mask, 0.0, is_causal, scaling, grouped)


def with_policy(policy: Policy, module: nn.Module, arguments: AttentionArguments) -> AttentionArguments:
    """The call with the policy's scale, if it is one of self-attention.

    A model that does not scale with 1 / sqrt(D) keeps its own scale times the policy's factor on 1 / sqrt(D).

    Raises:
        Unroutable: the call does not show whether it is one of self-attention.
    """
    if _is_cross(module, arguments):
        return arguments
    query, key = arguments.query, arguments.key
    number = getattr(module, "layer_idx", None)
    name = type(module).__name__
    info = CallInfo(
        layer=name if number is None else f"{name}.{number}",
        kind="self",
        seqlen_q=query.shape[2],
        seqlen_k=key.shape[2],
        num_heads=query.shape[1],
        head_dim=query.shape[3],
    )
    scale = resolve_scale(policy, info)
    if scale is None:
        return arguments
    if isinstance(scale, torch.Tensor):
        scale = scale.to(query.device, non_blocking=True)  # or the host would wait for the device
    own = arguments.scale
    if own is not None:
        scale = scale * (own / info.head_dim**-0.5)  # the usual factor is exactly 1
    return arguments._replace(scale=scale)


def _refuse(module: nn.Module, dropout: float, others: dict[str, Any]) -> None:
    what = [
        name
        for name, value in others.items()
        if name not in _WITHOUT_EFFECT and value is not None and value is not False
    ]
    if dropout > 0.0:
        what.append(f"dropout={dropout}")
    if what:
        raise Unroutable(type(module).__name__, [f"{', '.join(sorted(what))} is not part of this attention"])


def _is_cross(module: nn.Module, arguments: AttentionArguments) -> bool:
    """Whether a module attends to other tokens than its own; modules of transformers do not state it in one way."""
    name = type(module).__name__
    if getattr(module, "is_cross_attention", False) or "Cross" in name:
        return True
    config = getattr(module, "config", None)
    in_decoder = getattr(config, "is_encoder_decoder", False) and getattr(module, "is_decoder", False)
    # With a cache there are more keys than queries in self-attention too, and every layer has a number.
    uncached = getattr(module, "layer_idx", None) is None
    if in_decoder or (uncached and arguments.query.shape[2] != arguments.key.shape[2]):
        reason = "a scale policy is for self-attention, and this call does not show that it is; register without scale"
        raise Unroutable(name, [reason])
    return False


def _with_bias(mask: torch.Tensor | None, bias: torch.Tensor, is_causal: bool) -> torch.Tensor:
    """One additive mask of both; the bias broadcasts over the batch, the mask over the heads."""
    if is_causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
