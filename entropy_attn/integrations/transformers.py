"""Head-averaged self-attention maps of text encoders, without eager attention.

While maps are taken, an encoder's attention goes through the table of attention functions of transformers, under a
temporary name. This is the only file that relies on names that transformers does not document;
tests/integrations/test_transformers_names.py pins them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from entropy_attn.errors import Unroutable
from entropy_attn.ops import api as ops

_NUMBERS = itertools.count()  # encoders may be inside `text_attention_maps` at the same time


def text_self_attention_maps(
    text_encoder: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> tuple[Any, torch.Tensor]:
    """The encoder's output and its self-attention maps.

    Args:
        text_encoder: a text model of transformers, see `text_attention_maps`.
        input_ids: (B, N), tokens of the text.
        attention_mask: (B, N), as the encoder takes it.
        **options: other arguments of the encoder.

    Returns:
        The output, and the maps (layers, B, N, N): means over heads, float32, differentiable in the encoder's weights
        and embeddings.

    Raises:
        TypeError: `text_encoder` is no model of transformers.
        Unroutable: its attention cannot be taken over.
    """
    with text_attention_maps(text_encoder) as maps:
        output = text_encoder(input_ids, attention_mask=attention_mask, **options)
    return output, maps[0]


@contextmanager
def text_attention_maps(text_encoder: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """While the block lasts, every call of `text_encoder` adds its maps, as of `text_self_attention_maps`, to the list.

    For CLIP's text models, with and without projection, and others whose attention goes through the AttentionInterface
    of transformers; T5's does in recent releases of transformers 5. Encoders that share its configuration object use
    this package's attention during that time too, without records. All of it is undone at the end, whatever happens.

    Raises:
        TypeError: `text_encoder` is no model of transformers.
        Unroutable: its attention does not go through AttentionInterface, or a layer needs what this attention does not
            offer, such as dropout.
    """
    if not isinstance(text_encoder, PreTrainedModel):
        raise TypeError(f"text_encoder: expected a model of transformers, got {type(text_encoder).__name__}")
    taker = _MapTaker(text_encoder)
    configs = {id(config): (config, config._attn_implementation) for config in _configs(text_encoder)}
    name = f"entropy_attn_{next(_NUMBERS)}"
    AttentionInterface.register(name, taker.attention)
    # Under a name without a mask function, attention gets no padding mask at all.
    AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])
    hooks = []
    try:
        text_encoder.set_attn_implementation(name)
        if text_encoder.config._attn_implementation != name:
            raise Unroutable(type(text_encoder).__name__, [_NOT_OFFERED])
        hooks.append(text_encoder.register_forward_pre_hook(taker.begin))
        hooks.append(text_encoder.register_forward_hook(taker.end))
        yield taker.maps
    finally:
        for hook in hooks:
            hook.remove()
        for config, before in configs.values():
            if config._attn_implementation == name:  # unless another was chosen inside the block
                config._attn_implementation = before
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


_NOT_OFFERED = "this version of transformers does not send its attention through AttentionInterface"


def _configs(model: nn.Module) -> Iterator[Any]:
    """The configurations that `set_attn_implementation` of `model` may change."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            yield module.config


class _MapTaker:
    """Computes the attention of one encoder's layers, and collects the maps of each of its calls."""

    def __init__(self, text_encoder: PreTrainedModel):
        self.modules = set(map(id, text_encoder.modules()))
        self.model = type(text_encoder).__name__
        self.maps: list[torch.Tensor] = []
        self.layers: list[torch.Tensor] | None = None

    def begin(self, *_: Any) -> None:
        self.layers = []

    def end(self, *_: Any) -> None:
        layers, self.layers = self.layers, None
        if not layers:
            raise Unroutable(self.model, [_NOT_OFFERED])
        self.maps.append(torch.stack(layers))

    def attention(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Signature and meaning are those of the "sdpa" function of transformers."""
        ignored = {name for name in ("softcap", "s_aux", "head_mask", "cache") if kwargs.get(name) is not None}
        if dropout > 0.0 or ignored:
            what = ", ".join(sorted(ignored)) or f"dropout={dropout}"
            raise Unroutable(type(module).__name__, [f"{what} is not part of this attention"])
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        is_causal = bool(is_causal) and attention_mask is None and query.shape[2] > 1
        if position_bias is not None:
            attention_mask = _with_bias(attention_mask, position_bias, is_causal)
            is_causal = False
        recorded = id(module) in self.modules
        result = ops.attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=is_causal,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
            map_keys=(0, key.shape[2]) if recorded else None,
        )
        if result.map is not None and self.layers is not None:  # None: computed again by checkpointing
            self.layers.append(result.map)
        return result.out.transpose(1, 2).contiguous(), None


def _with_bias(mask: torch.Tensor | None, bias: torch.Tensor, is_causal: bool) -> torch.Tensor:
    """One additive mask of both; the bias broadcasts over the batch, the mask over the heads."""
    if is_causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
