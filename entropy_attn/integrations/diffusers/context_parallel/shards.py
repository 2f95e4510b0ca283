"""The tokens of a denoiser after `enable_parallelism(config=ContextParallelConfig(...))`, as the router sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.context_parallel.gathered import attention_over_gathered
from entropy_attn.integrations.diffusers.context_parallel.layout import Layout
from entropy_attn.integrations.diffusers.context_parallel.templates import attention_by_templates
from entropy_attn.ops.api import AttentionOutput
from entropy_attn.ops.checks import check_scale
from entropy_attn.ops.response import response_and_variance
from entropy_attn.ops.split_keys import map_of_keys
from entropy_attn.routing.calls import AttentionArguments, LayerCall
from entropy_attn.routing.shards import Shards


class ContextParallel(Shards):
    """Spread by diffusers: Ulysses, a ring, or both. See docs/many-gpus.md.

    Args:
        config: diffusers' `ParallelConfig`.
    """

    def __init__(self, config: Any):
        self._config = config
        self.layout = Layout(config.context_parallel_config)

    def total(self, tokens: int) -> int:
        return sum(self.layout.lengths(tokens))

    def own(self, total: int) -> int:
        return self.layout.part(total)

    def whole(self, part: Tensor, dim: int) -> Tensor:
        return self.layout.join(part, dim)

    def check(self, layer_call: LayerCall, arguments: AttentionArguments) -> None:
        reasons = [*self._reasons(arguments)]
        if layer_call.kind == "cross" and layer_call.text is None:
            reasons.append(
                "its image prompt is whole on every device, and diffusers takes it for parts; run it on one device, or "
                "without the image prompt"
            )
        if reasons:
            raise Unroutable(f"layer {layer_call.layer!r}", reasons)

    def _reasons(self, arguments: AttentionArguments) -> list[str]:
        query, key, mask, layout = arguments.query, arguments.key, arguments.attn_mask, self.layout
        heads, reasons = query.shape[1], []
        if arguments.dropout_p > 0.0 or arguments.is_causal:
            reasons.append("dropout and causal masks are none of diffusers' context parallelism; run it on one device")
        if key.shape[1] != heads:
            reasons.append(
                f"its {heads} heads share {key.shape[1]} heads of the keys, which is none of diffusers' context "
                "parallelism; run it on one device"
            )
        if heads % layout.ulysses and not layout.uneven:
            reasons.append(
                f"ulysses_degree={layout.ulysses} does not divide its {heads} heads; give ulysses_anything=True, or "
                "another degree"
            )
        if mask is not None and layout.ring > 1:
            reasons.append(
                "it has a mask of keys, and diffusers' ring gives the keys of every device the mask of this one's; "
                "give ulysses_degree instead of ring_degree"
            )
        elif mask is not None and (mask.dim() != 4 or mask.shape[2] != 1 or mask.shape[3] != key.shape[2]):
            reasons.append(
                f"its mask of shape {tuple(mask.shape)} is none of this device's {key.shape[2]} keys alone; run it on "
                "one device"
            )
        if mask is not None and mask.requires_grad:
            reasons.append("its mask has a gradient, which is lost between devices; run it on one device")
        return reasons

    def attention(
        self,
        arguments: AttentionArguments,
        *,
        return_entropy: bool = False,
        text: slice | None = None,
        text_range: tuple[int, int] | None = None,
    ) -> AttentionOutput:
        check_scale(arguments.scale, arguments.query)  # the templates take parts of it
        if _needs_gradient(arguments):
            out, entropy, head_mean = attention_over_gathered(
                arguments, self.layout, return_entropy=return_entropy, text=text, text_range=text_range
            )
            return AttentionOutput(out, None, entropy, head_mean)
        statistics = return_entropy or text_range is not None
        out, lse, entropy = attention_by_templates(arguments, self.layout, self._config, statistics=statistics)
        head_mean = None
        if text is not None and text_range is not None and lse is not None:
            head_mean = self._map(arguments, text, slice(*text_range), lse)
        return AttentionOutput(out, None, entropy if return_entropy else None, head_mean)

    def response(self, arguments: AttentionArguments) -> Tensor:
        keys, mask = self.whole(arguments.key, 2), arguments.attn_mask
        return response_and_variance(  # which does not depend on the values
            arguments.query,
            keys,
            keys,
            attn_mask=None if mask is None else self.whole(mask, -1),
            scale=arguments.scale,
        )

    def _map(self, arguments: AttentionArguments, text: slice, positions: slice, lse: Tensor) -> Tensor:
        """Of these positions of the whole text, whose keys alone are gathered."""
        mask = arguments.attn_mask
        return map_of_keys(
            arguments.query,
            self.whole(arguments.key[:, :, text], 2)[:, :, positions],
            lse,
            scale=arguments.scale,
            mask=None if mask is None else self.whole(mask[..., text], -1)[..., positions],
        )


def _needs_gradient(arguments: AttentionArguments) -> bool:
    tensors = (arguments.query, arguments.key, arguments.value, arguments.scale)
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in tensors)
