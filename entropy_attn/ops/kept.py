"""Attention with entropy and map on a CPU that keeps its probabilities for the backward pass, where they are small.

For a few dozen keys, as in cross-attention, computing the scores again costs more than reading them. The probabilities
are (keys, queries) in memory: products with rows of thousands of numbers are faster than with rows of 77, and a map
is the mean of whole rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .row_blocks import LOG_ZERO, first_order_only, is_differentiated, scaled_product
from .tensor_kinds import in_transform, may_read

# Per call. The largest layers of Stable Diffusion at 512 px need 10 MiB an image; a backward pass needs it twice.
KEPT_BYTES = 32 << 20


def keeps_probabilities(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether a backward pass may follow that should find the probabilities in memory; not inside of functorch."""
    if not may_read(query) or in_transform() or not is_differentiated(query, key, value, mask):
        return False
    return query.shape[:-1].numel() * key.shape[2] * query.element_size() <= KEPT_BYTES


def attention_kept(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    return_entropy: bool,
    map_keys: tuple[int, int] | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Out, entropy and map in the query's dtype, None where not wanted; the mask has four dimensions."""
    return _Kept.apply(query, key, value, mask, scale, return_entropy, map_keys)


class _Kept(torch.autograd.Function):
    """In the older style, with `ctx` in `forward`: for the other one torch inspects a signature at every call."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        want_entropy: bool,
        map_keys: tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        batch, heads, rows, _ = q.shape
        p = _probabilities(q, k, mask, scale)
        out = torch.bmm(p.mT, v.flatten(0, 1)).view(batch, heads, rows, v.shape[-1])
        entropy = head_mean = None
        if want_entropy:
            entropy = (p * _log(p)).sum(dim=1).neg_().add_(0.0).view(q.shape[:-1])  # of one key 0.0, never -0.0
        if map_keys is not None:
            head_mean = p.view(batch, heads, k.shape[2], rows)[:, :, slice(*map_keys)].mean(dim=1).mT.contiguous()
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.map_keys = scale, map_keys
        ctx.save_for_backward(q, k, v, mask, p)
        return out, entropy, head_mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor twice
        with torch.no_grad():
            result = _gradients(saved, ctx.needs_input_grad[:4], ctx.scale, ctx.map_keys, *grads)
        return *first_order_only(result, (*saved[:4], *grads)), None, None, None


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B * H, Nk, Nq); 0 for a query without keys."""
    s = _scores(q, k, mask, scale)
    p = torch.softmax(s, dim=1, out=s)
    if p.numel() and math.isnan(p[:, 0].sum().item()):  # no keys, or NaN among the scores: the maximum tells
        empty = _scores(q, k, mask, scale).amax(dim=1, keepdim=True) == -math.inf
        p.masked_fill_(empty, 0.0)
    return p


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """scale * K Q^T, with -inf for keys that a query does not attend."""
    s = q.new_empty(q.shape[0] * q.shape[1], k.shape[2], q.shape[2])
    scaled_product(k.flatten(0, 1), q.flatten(0, 1).mT, s, scale)
    if mask is not None:
        every, turned = s.view(*q.shape[:2], k.shape[2], q.shape[2]), mask.mT
        if mask.dtype != torch.bool:
            every.add_(turned)
        every.masked_fill_(~turned if mask.dtype == torch.bool else turned == -math.inf, -math.inf)
    return s


def _log(p: Tensor) -> Tensor:
    return p.log().clamp_(min=LOG_ZERO)


def _gradients(
    saved: tuple[Any, ...],
    needed: tuple[bool, ...],
    scale: float,
    map_keys: tuple[int, int] | None,
    grad_out: Tensor | None,
    grad_entropy: Tensor | None,
    grad_map: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v and mask, as in `row_gradients`."""
    q, k, v, mask, p = saved
    batch, heads, rows, _ = q.shape
    dq, dk, dv, dmask = None, None, None, None
    if grad_out is None:
        dp = torch.zeros_like(p)
    else:
        dout = grad_out.flatten(0, 1)
        dp = torch.bmm(v.flatten(0, 1), dout.mT)
        if needed[2]:
            dv = torch.bmm(p, dout).view(v.shape)
    if grad_map is not None and map_keys is not None:
        of_map = dp.view(batch, heads, k.shape[2], rows)[:, :, slice(*map_keys)]
        of_map.add_(grad_map.mT.unsqueeze(1), alpha=1.0 / heads)
    if grad_entropy is not None:
        dp.addcmul_(_log(p), grad_entropy.flatten(0, 1).unsqueeze(1), value=-1.0)
    # A column is read for its sum before it is written
    ds = torch.ops.aten._softmax_backward_data.out(dp, p, 1, p.dtype, grad_input=dp)
    if needed[0]:
        dq = scaled_product(ds.mT, k.flatten(0, 1), q.new_empty(batch * heads, *q.shape[2:]), scale).view(q.shape)
    if needed[1]:
        dk = scaled_product(ds, q.flatten(0, 1), k.new_empty(batch * heads, *k.shape[2:]), scale).view(k.shape)
    if needed[3] and mask is not None:
        dmask = ds.view(batch, heads, k.shape[2], rows).mT.sum_to_size(mask.shape).to(mask.dtype)
    return dq, dk, dv, dmask
