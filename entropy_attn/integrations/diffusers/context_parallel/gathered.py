"""Attention over the keys of all devices as one differentiable operator: gather, attention, reduce-scatter.

Every device attends from its own queries, with all heads, to the keys of all devices. The backward pass gathers them
again, so that between the passes each device keeps its part alone, and sums the gradients of each part where it is.
Unlike the templates of diffusers 0.42 it is differentiable in the scale, the entropy and the map, is right for rings of
more than two devices, and takes uneven parts. It holds no more than their ring, which gathers all keys too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entropy_attn.integrations.diffusers.context_parallel.layout import Layout
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.ops.autocast import as_autocast
from entropy_attn.ops.choice import automatic
from entropy_attn.routing.calls import AttentionArguments


def attention_over_gathered(
    arguments: AttentionArguments,
    layout: Layout,
    *,
    return_entropy: bool,
    text: slice | None,
    text_range: tuple[int, int] | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Out, entropy and map of the own rows, as `Shards.attention` returns them; None for what is not wanted.

    The gradient of a scale is this device's part of it, as those of a model's parameters are.
    """
    query, key, value = as_autocast(arguments.query, arguments.key, arguments.value)
    scale = arguments.scale
    if scale is not None and not isinstance(scale, Tensor):
        scale = torch.tensor(scale, dtype=torch.float64)
    mask = None if arguments.attn_mask is None else layout.join(arguments.attn_mask, -1)
    lengths = layout.lengths(key.shape[2])
    order, map_keys = None, (0, 0)
    if text is not None and text_range is not None:
        order, map_keys = _text_first(lengths, _texts(text, lengths, layout), key.device), text_range
        mask = None if mask is None else mask.index_select(-1, order)
    options = _Options(layout, lengths, order, return_entropy, map_keys)
    out, entropy, head_mean = _Gathered.apply(query, key, value, mask, scale, options)
    return out, entropy if return_entropy else None, head_mean if options.has_map else None


class _Options(NamedTuple):
    layout: Layout
    lengths: list[int]  # keys of every device
    order: Tensor | None  # of the gathered keys
    return_entropy: bool
    map_keys: tuple[int, int]  # in that order

    @property
    def has_map(self) -> bool:
        return self.order is not None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = (_whole(t, options) for t in (key, value))
        ctx.options, ctx.impl = options, _impl(query, keys, values, mask, scale, options)
        out, lse, entropy, head_mean = torch.ops.entropy_attn.attention(
            query, keys, values, mask, scale, False, options.return_entropy, *options.map_keys, ctx.impl
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, key, value, mask, scale, out, lse, entropy)
        return out, entropy, head_mean

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_entropy: Tensor | None, grad_map: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        query, key, value, mask, scale, *results = ctx.saved_tensors
        options: _Options = ctx.options
        keys, values = (_whole(t, options) for t in (key, value))
        # Whatever this device needs: the others wait for its part.
        needs = [True, True, True, False, ctx.needs_input_grad[4]]
        grads = (
            grad_out,
            None,
            grad_entropy if options.return_entropy else None,
            grad_map if options.has_map else None,
        )
        dquery, dkeys, dvalues, _, dscale = torch.ops.entropy_attn.attention_backward(
            query, keys, values, mask, scale, *results, *grads, False, *options.map_keys, ctx.impl, needs
        )
        dkey, dvalue = (_part(t, options).to(key.dtype) for t in (dkeys, dvalues))
        return dquery, dkey, dvalue, None, dscale if needs[4] else None, None


def _impl(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: Tensor | None, options: _Options
) -> str:
    """What `ops.attention` would take for this call on one device, where autograd records it."""
    statistics: dict[str, Any] = {"return_lse": True, "return_entropy": options.return_entropy}
    if options.has_map:
        statistics["map_keys"] = options.map_keys
    with torch.enable_grad():
        differentiated = query.detach().requires_grad_()
        return automatic(AttentionCall(differentiated, keys, values, mask, scale=scale, **statistics)).name


def _texts(text: slice, lengths: list[int], layout: Layout) -> list[slice]:
    """Where the text is among the keys of every device, first or last on all of them."""
    counts = layout.lengths(text.stop - text.start)
    if text.start == 0:
        return [slice(0, count) for count in counts]
    return [slice(length - count, length) for length, count in zip(lengths, counts, strict=True)]


def _text_first(lengths: list[int], texts: list[slice], device: torch.device) -> Tensor:
    """An order of the gathered keys in which the text of all devices comes first.

    A map is of one range of keys; nothing else depends on their order.
    """
    first, others = [], []
    parts = torch.arange(sum(lengths), device=device).split(lengths)
    for part, text in zip(parts, texts, strict=True):
        first.append(part[text])
        others += [part[: text.start], part[text.stop :]]
    return torch.cat([*first, *others])


def _whole(part: Tensor, options: _Options) -> Tensor:
    """(B, H, keys, D) of all devices, in the order that the map needs."""
    whole = options.layout.join(part, 2)
    return whole if options.order is None else whole.index_select(2, options.order)


def _part(whole: Tensor, options: _Options) -> Tensor:
    """The sum over devices of gradients of `_whole`'s result, for the own part; in float32 at least."""
    whole = whole.to(torch.promote_types(whole.dtype, torch.float32))
    if options.order is not None:
        whole = torch.empty_like(whole).index_copy_(2, options.order, whole)
    return options.layout.sum_of_own(whole, 2, options.lengths)
