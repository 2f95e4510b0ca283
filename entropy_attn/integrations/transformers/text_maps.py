"""Head-averaged self-attention maps of text encoders, without eager attention.

While maps are taken, an encoder's attention goes through the AttentionInterface of transformers under a temporary name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.transformers.calls import arguments_of
from entropy_attn.integrations.transformers.registration import NOT_OFFERED, Registration
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

    Args:
        text_encoder: the text model.

    Yields:
        The list, of tensors (layers, B, N, N).

    Raises:
        TypeError: `text_encoder` is no model of transformers.
        Unroutable: its attention does not go through AttentionInterface, or a layer needs what this attention does not
            offer, such as dropout.
    """
    if not isinstance(text_encoder, PreTrainedModel):
        raise TypeError(f"text_encoder: expected a model of transformers, got {type(text_encoder).__name__}")
    taker = _MapTaker(text_encoder)
    with Registration(f"entropy_attn_{next(_NUMBERS)}", taker.attention) as registration:
        registration.use(text_encoder)
        hooks = []
        try:
            hooks.append(text_encoder.register_forward_pre_hook(taker.begin))
            hooks.append(text_encoder.register_forward_hook(taker.end))
            yield taker.maps
        finally:
            for hook in hooks:
                hook.remove()


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
            raise Unroutable(self.model, [NOT_OFFERED])
        self.maps.append(torch.stack(layers))

    def attention(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        arguments = arguments_of(module, *args, **kwargs)
        recorded = id(module) in self.modules
        result = ops.attention(
            arguments.query,
            arguments.key,
            arguments.value,
            attn_mask=arguments.attn_mask,
            is_causal=arguments.is_causal,
            scale=arguments.scale,
            enable_gqa=arguments.enable_gqa,
            map_keys=(0, arguments.key.shape[2]) if recorded else None,
        )
        if result.map is not None and self.layers is not None:  # None: computed again by checkpointing
            self.layers.append(result.map)
        return result.out.transpose(1, 2).contiguous(), None
