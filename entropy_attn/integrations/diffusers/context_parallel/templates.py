"""Attention by diffusers' templates: they move the tensors and merge the outputs, each device computes by this package.

For calls without gradients. The templates have no place for an entropy, so what each chunk of keys gave is kept beside
them and merged here.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from entropy_attn.integrations.diffusers.context_parallel.layout import Layout, waited
from entropy_attn.integrations.diffusers.context_parallel.private import templated_attention
from entropy_attn.ops import api as ops
from entropy_attn.ops.split_keys import merge_statistics
from entropy_attn.routing.calls import AttentionArguments


def attention_by_templates(
    arguments: AttentionArguments, layout: Layout, config: Any, *, statistics: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Out (B, H, own rows, D), and with `statistics` log-sum-exp and entropy (B, H, own rows), over all keys.

    config: diffusers' `ParallelConfig`.
    """
    heads, rows = arguments.query.shape[1:3]
    local = _LocalAttention(layout, heads, statistics)
    out = templated_attention(
        arguments.query.transpose(1, 2),
        arguments.key.transpose(1, 2),
        arguments.value.transpose(1, 2),
        None if arguments.attn_mask is None else arguments.attn_mask.contiguous(),
        scale=arguments.scale,
        forward_op=local.forward,
        backward_op=_no_backward,
        _parallel_config=config,
    ).transpose(1, 2)
    if not statistics:
        return out, None, None
    both = layout.own_rows(torch.stack(local.statistics(), -1), heads, rows)
    lse, entropy = both.unbind(-1)
    return out, lse, entropy


class _LocalAttention:
    """What one device computes in one templated call: all its heads, over one chunk of keys after the other.

    Tensors of the templates are (batch, tokens, heads, head dim).
    """

    def __init__(self, layout: Layout, heads: int, wants_statistics: bool):
        self.layout = layout
        self.heads = heads
        self.wants_statistics = wants_statistics
        self.chunks: list[ops.AttentionOutput] = []

    def forward(
        self,
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | Tensor | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        _save_ctx: bool = True,
        _parallel_config: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = (waited(t).transpose(1, 2) for t in (query, key, value))
        own = self.layout.heads(self.heads)
        if isinstance(scale, Tensor) and scale.dim():
            scale = scale[..., own]
        if attn_mask is not None and attn_mask.shape[1] > 1:
            attn_mask = attn_mask[:, own]
        if not (return_lse or self.wants_statistics):
            out = ops.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale)
            return out.transpose(1, 2)
        result = ops.attention(
            query, key, value, attn_mask=attn_mask, scale=scale, return_lse=True, return_entropy=self.wants_statistics
        )
        if self.wants_statistics:
            self.chunks.append(result)
        out = result.out.transpose(1, 2)
        assert result.lse is not None
        return (out, result.lse.transpose(1, 2)) if return_lse else out

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exp and entropy over all keys, (B, own heads, rows)."""
        lse = [chunk.lse for chunk in self.chunks]
        entropy = [chunk.entropy for chunk in self.chunks]
        if len(self.chunks) == 1:
            return lse[0], entropy[0]  # type: ignore[return-value]  # they were asked for
        return merge_statistics(torch.stack(lse), torch.stack(entropy))  # type: ignore[arg-type]


def _no_backward(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("a call without gradients was differentiated")  # `ContextParallel.attention` knows them
