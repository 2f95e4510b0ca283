"""Exact attention with lse, entropy and map from torch's operations, a block of whole rows at a time.

torch's fused attention alone could give the statistics, as entropy = lse - scale * q . (sum_j p_j k_j), but that
subtracts two numbers of the size of the logits: with logits near 1e4 every digit is lost. A block of whole rows that
stays in the cache costs the same time on a CPU, needs no such subtraction, and works for every mask and scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import Unsupported
from .tensor_kinds import may_read

# Scores of one block. CPU: 1 MiB in float32 stays in the cache of a core. Elsewhere: enough to fill the device.
BLOCK_SCORES_CPU = 1 << 18
BLOCK_SCORES_DEVICE = 1 << 25
MIN_BLOCK_ROWS = 64  # fewer rows make the two products matrix-vector products
LOG_ZERO = -1e4  # replaces -inf where a factor may be 0; its exp is 0 in every dtype


def attention_row_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    *,
    return_lse: bool = False,
    return_entropy: bool = False,
    map_keys: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Out, lse, entropy and map in the query's dtype, None where not wanted; the mask has four dimensions.

    Besides the results, memory holds blocks of scores: no (Nq, Nk) matrix, and no map of a single head. A backward pass
    computes them again.
    """
    run = _RowBlocks.apply if is_differentiated(query, key, value, mask) else _RowBlocks.forward
    return run(query, key, value, mask, is_causal, scale, return_lse, return_entropy, map_keys)


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _RowBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float,
        want_lse: bool,
        want_entropy: bool,
        map_keys: tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        with_sums = want_lse or want_entropy or is_causal
        highest, peak = (q.new_empty(q.shape[:-1]) for _ in range(2)) if with_sums else (None, None)  # [B, H, Nq]
        entropy = q.new_empty(q.shape[:-1]) if want_entropy else None
        head_mean = q.new_zeros(q.shape[0], q.shape[2], map_keys[1] - map_keys[0]) if map_keys else None
        blocks = _Blocks(q, k, mask, is_causal, scale)
        for at, keys in blocks:
            p = blocks.buffer(1, at, keys)
            if highest is None or peak is None:
                blocks.softmax(at, keys, p)
            else:
                x = blocks.softmax_parts(at, keys, p, highest[at], peak[at])
                if entropy is not None:
                    if blocks.has_masked:
                        x.clamp_(min=LOG_ZERO)
                    torch.sum(x.mul_(p), dim=-1, out=entropy[at])
            scaled_product(p, v[at[0], at[1], :keys], out[at])
            if map_keys and head_mean is not None:
                in_map, in_block = _shared_keys(map_keys, keys)
                head_mean[at[0], at[2], in_map] += p[..., in_block].sum(dim=0)
        lse = None
        if highest is not None and peak is not None:
            log_sum = _log_sum(highest, peak)
            lse = highest.add_(log_sum)
            if entropy is not None:  # ln(sum e^x) - sum(p x): both parts are >= 0, so nothing cancels
                torch.sub(log_sum, entropy, out=entropy)
        if head_mean is not None:
            head_mean /= q.shape[1]
            if is_causal and lse is not None:  # a row of NaN is NaN also beyond the keys of its block
                head_mean.masked_fill_(lse.isnan().any(1)[..., None], math.nan)
        return out, lse if want_lse else None, entropy, head_mean

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]
    ) -> None:  # separate, as functorch transforms need it
        ctx.set_materialize_grads(False)
        *tensors, ctx.is_causal, ctx.scale, _, _, ctx.map_keys = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, *arguments: Any
    ) -> None:  # without it, plain tensors inside a vmap would be refused too
        raise Unsupported("sdpa", ['inside torch.vmap: put that dimension into the batch, or use impl="reference"'])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor twice
        with torch.no_grad():
            options = (ctx.needs_input_grad[:4], ctx.is_causal, ctx.scale, ctx.map_keys)
            result = row_gradients(saved, *options, *grads)
        return *first_order_only(result, (*saved, *grads)), *(None,) * 5


def _log_sum(highest: Tensor, peak: Tensor) -> Tensor:
    """ln(sum e^(s - max)) in the memory of `peak`, from the highest score and probability of each row.

    The probability of the highest score is 1 / sum e^(s - max). A row without keys has 0.
    """
    return peak.masked_fill_(highest == -math.inf, 1.0).log_().neg_().clamp_(min=0.0)


def scaled_product(one: Tensor, other: Tensor, out: Tensor, factor: float = 1.0) -> Tensor:
    """factor * one @ other in `out`, which may have gaps."""
    if not out.is_contiguous():
        return out.copy_(
            scaled_product(one, other, torch.empty_like(out, memory_format=torch.contiguous_format), factor)
        )
    if factor == 1.0:
        return torch.bmm(one, other, out=out)
    return torch.baddbmm(out, one, other, beta=0.0, alpha=factor, out=out)


class _FirstOrderOnly(torch.autograd.Function):
    """Marks a gradient as depending on its sources in a way that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise NotImplementedError(
            "attention with statistics has no second derivative in impl='sdpa'; impl='reference' has"
        )


def first_order_only(
    gradients: tuple[Tensor | None, ...], sources: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """With create_graph=True a second derivative of these must fail, not read as zero."""
    if not torch.is_grad_enabled():
        return gradients
    given = [t for t in sources if t is not None]
    return tuple(None if t is None else _FirstOrderOnly.apply(t, *given) for t in gradients)


def row_gradients(
    saved: tuple[Any, ...],
    needed: tuple[bool, ...],
    is_causal: bool,
    scale: float,
    map_keys: tuple[int, int] | None,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_map: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v and mask: with dP = dO V^T + dMap / heads - dH * ln P, dS = P * (dP - sum(P * dP) + dlse).

    `saved` is q, k, v and mask. P is computed again from the scores and not from lse: beside a mask of -1e9, lse in one
    number would not hold the sum.
    """
    q, k, v, mask = saved
    tensors = zip((k, v, mask), needed[1:], strict=True)
    dk, dv, dmask = (torch.zeros_like(t, dtype=q.dtype) if need else None for t, need in tensors)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format) if needed[0] else None
    grad_out = None if grad_out is None else grad_out.contiguous()  # that of a mean has no strides

    blocks = _Blocks(q, k, mask, is_causal, scale)
    for at, keys in blocks:
        b, h, _ = at
        p, log_p = blocks.buffer(1, at, keys), None
        if grad_entropy is None:
            blocks.softmax(at, keys, p)
        else:
            highest, peak = (q.new_empty(p.shape[:-1]) for _ in range(2))
            x = blocks.softmax_parts(at, keys, p, highest, peak)
            log_p = x.sub_(_log_sum(highest, peak).unsqueeze(-1))
        dp = blocks.buffer(2, at, keys)
        if grad_out is None:
            dp.zero_()
        else:
            torch.bmm(grad_out[at], v[b, h, :keys].mT, out=dp)
            if dv is not None:
                dv[b, h, :keys].baddbmm_(p.mT, grad_out[at])
        if grad_map is not None and map_keys is not None:
            in_map, in_block = _shared_keys(map_keys, keys)
            dp[..., in_block].add_(grad_map[b, at[2], in_map], alpha=1.0 / q.shape[1])  # the same for every head
        if grad_entropy is not None and log_p is not None:
            dp.addcmul_(log_p.clamp_(min=LOG_ZERO), grad_entropy[at].unsqueeze(-1), value=-1.0)
        ds = _softmax_backward(dp, p)
        if grad_lse is not None:  # lse of a row without keys, and perhaps its gradient, is infinite
            empty = p.sum(dim=-1, keepdim=True) == 0
            ds.addcmul_(p, grad_lse[at].unsqueeze(-1).masked_fill(empty, 0.0))
        if dq is not None:
            scaled_product(ds, k[b, h, :keys], dq[at], scale)
        if dk is not None:
            dk[b, h, :keys].baddbmm_(ds.mT, q[at], alpha=scale)
        if dmask is not None:
            part = _broadcast_part(dmask, at, keys)
            part += ds.sum_to_size(part.shape)
    return dq, dk, dv, None if dmask is None else dmask.to(mask.dtype)


def _softmax_backward(dp: Tensor, p: Tensor) -> Tensor:
    """P * (dP - sum(P * dP)) along rows, on a CPU in the memory of `dp`."""
    if dp.device.type == "cpu":  # a row is read for its sum before it is written
        return torch.ops.aten._softmax_backward_data.out(dp, p, -1, p.dtype, grad_input=dp)
    return torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)


class _Blocks:
    """Iterates over the score matrix in blocks of whole rows and computes them, in buffers that all blocks share."""

    def __init__(self, q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, scale: float):
        self.q, self.k, self.mask, self.is_causal, self.scale = q, k, mask, is_causal, scale
        self.has_masked = mask is not None or is_causal
        limit = BLOCK_SCORES_CPU * torch.get_num_threads() if q.device.type == "cpu" else BLOCK_SCORES_DEVICE
        _, heads, rows, _ = q.shape
        keys = max(1, k.shape[2])
        self.rows = max(1, min(rows, max(MIN_BLOCK_ROWS, limit // keys)))
        self.heads = max(1, min(heads, limit // (self.rows * keys)))
        self._buffers: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[tuple[int, slice, slice], int]]:
        """Index of a block, `(b, heads, rows)`, and how many keys its rows can attend."""
        batch, heads, rows, _ = self.q.shape
        for b in range(batch):
            for h in range(0, heads, self.heads):
                for i in range(0, rows, self.rows):
                    end = min(rows, i + self.rows)
                    keys = min(self.k.shape[2], end) if self.is_causal else self.k.shape[2]
                    yield (b, slice(h, min(heads, h + self.heads)), slice(i, end)), keys

    def buffer(self, index: int, at: tuple[int, slice, slice], keys: int) -> Tensor:
        """Buffer number `index`, shaped (heads, rows, keys) for this block."""
        if index not in self._buffers:
            self._buffers[index] = self.q.new_empty(self.heads * self.rows * self.k.shape[2])
        shape = (at[1].stop - at[1].start, at[2].stop - at[2].start, keys)
        return self._buffers[index][: math.prod(shape)].view(shape)

    def softmax(self, at: tuple[int, slice, slice], keys: int, p: Tensor) -> None:
        """Write the probabilities of the block to `p`; 0 for a row without keys."""
        if keys and may_read(p):
            torch.softmax(self.scores(at, keys, p), dim=-1, out=p)
            if not math.isnan(p[..., 0].sum().item()):
                return
        # A row of NaN has no keys, or NaN among its scores: the maximum tells
        self.softmax_parts(at, keys, p, *(p.new_empty(p.shape[:-1]) for _ in range(2)))

    def softmax_parts(
        self, at: tuple[int, slice, slice], keys: int, p: Tensor, highest: Tensor, peak: Tensor
    ) -> Tensor:
        """Write the probabilities to `p`, the highest score of each row and the highest probability to the others.

        A row without keys has 0, -inf and 0. torch's softmax is one pass over the block, and faster than its exp.

        Returns:
            The scores minus the highest one.
        """
        s = self.scores(at, keys, self.buffer(0, at, keys))
        if not keys:
            highest.fill_(-math.inf)
            peak.zero_()
            return s
        torch.amax(s, dim=-1, out=highest)
        empty = highest == -math.inf
        if may_read(s) and not empty.any():
            x = s.sub_(highest.unsqueeze(-1))
            torch.softmax(x, dim=-1, out=p)
        else:
            x = s.sub_(highest.masked_fill(empty, 0.0).unsqueeze(-1))
            torch.softmax(x, dim=-1, out=p)
            p.masked_fill_(empty.unsqueeze(-1), 0.0)
        torch.amax(p, dim=-1, out=peak)
        return x

    def scores(self, at: tuple[int, slice, slice], keys: int, out: Tensor) -> Tensor:
        """scale * QK^T of the block with -inf for keys that a row does not attend, in `out`."""
        b, h, i = at
        s = scaled_product(self.q[at], self.k[b, h, :keys].mT, out, self.scale)
        if self.mask is not None:
            part = _broadcast_part(self.mask, at, keys)
            if part.dtype != torch.bool:
                s.add_(part)
            s.masked_fill_(~part if part.dtype == torch.bool else part == -math.inf, -math.inf)
        if self.is_causal:
            row = torch.arange(i.start, i.stop, device=s.device)[:, None]
            s.masked_fill_(torch.arange(keys, device=s.device) > row, -math.inf)
        return s


def _broadcast_part(mask: Tensor, at: tuple[int, slice, slice], keys: int) -> Tensor:
    """The block's part of a broadcastable (B|1, H|1, Nq|1, Nk|1) tensor, with three dimensions."""
    b, h, i = at
    every = slice(None)
    return mask[
        b if mask.shape[0] > 1 else 0,
        h if mask.shape[1] > 1 else every,
        i if mask.shape[2] > 1 else every,
        slice(keys) if mask.shape[3] > 1 else every,
    ]


def _shared_keys(map_keys: tuple[int, int], keys: int) -> tuple[slice, slice]:
    """The columns of the map, and of a block over the first `keys` keys, that are the same keys."""
    start, stop = min(map_keys[0], keys), min(map_keys[1], keys)
    return slice(stop - start), slice(start, stop)
