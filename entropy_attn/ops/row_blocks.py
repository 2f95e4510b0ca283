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

from entropy_attn.errors import Unsupported

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
    *,
    return_entropy: bool = False,
    map_keys: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Out, lse, entropy and map in the query's dtype; the query includes the scale, the mask has four dimensions.

    Besides the results, memory holds one block of scores: no (Nq, Nk) matrix, and no map of a single head.
    """
    return _RowBlocks.apply(query, key, value, mask, is_causal, return_entropy, map_keys)


class _RowBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        want_entropy: bool,
        map_keys: tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        row_max, log_sum = q.new_empty(q.shape[:-1]), q.new_empty(q.shape[:-1])  # [B, H, Nq]
        entropy = q.new_empty(q.shape[:-1]) if want_entropy else None
        head_mean = q.new_zeros(q.shape[0], q.shape[2], map_keys[1] - map_keys[0]) if map_keys else None
        blocks = _Blocks(q, k, mask, is_causal)
        for at, keys in blocks:
            s, p = blocks.scores(at, keys), blocks.buffer(1, at, keys)
            x, m, total = _exponentials(s, p)
            row_max[at] = m.squeeze(-1)
            out[at] = torch.bmm(p, v[at[0], at[1], :keys]).div_(total)
            log_sum[at] = total.log().squeeze(-1)
            if entropy is not None:  # ln(sum p) - sum(p x) / sum(p): both parts are >= 0, so nothing cancels
                if blocks.has_masked:
                    x.clamp_(min=LOG_ZERO)
                entropy[at] = log_sum[at] - x.mul_(p).sum(dim=-1).div_(total.squeeze(-1))
            if map_keys and head_mean is not None:
                in_map, in_block = _shared_keys(map_keys, keys)
                head_mean[at[0], at[2], in_map] += p[..., in_block].div_(total * q.shape[1]).sum(dim=0)
        lse = row_max + log_sum
        if head_mean is not None and is_causal:  # a row of NaN is NaN also beyond the keys of its block
            head_mean.masked_fill_(lse.isnan().any(1)[..., None], math.nan)
        return out, lse, entropy, head_mean

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]
    ) -> None:  # separate, as functorch transforms need it
        ctx.set_materialize_grads(False)
        *tensors, ctx.is_causal, _, ctx.map_keys = inputs
        out, _, entropy, _ = output
        ctx.save_for_backward(*tensors, out, entropy)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, *arguments: Any
    ) -> None:  # without it, plain tensors inside a vmap would be refused too
        raise Unsupported("sdpa", ['inside torch.vmap: put that dimension into the batch, or use impl="reference"'])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks no tensor twice
        with torch.no_grad():
            result = row_gradients(saved, ctx.needs_input_grad[:4], ctx.is_causal, ctx.map_keys, *grads)
        if torch.is_grad_enabled():  # create_graph=True: a second derivative must fail, not read as zero
            sources = [t for t in (*saved[:4], *grads) if t is not None]
            result = tuple(None if t is None else _FirstOrderOnly.apply(t, *sources) for t in result)
        return *result, None, None, None


def _exponentials(s: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s - max, max and sum along rows, with exp(s - max) written to `p`; -inf, -inf and 1 for a row without keys."""
    m = s.amax(dim=-1, keepdim=True) if s.shape[-1] else s.new_full((*s.shape[:2], 1), -math.inf)
    x = s.sub_(m.masked_fill(m == -math.inf, 0.0))  # <= 0, and 0 at the maximum
    torch.exp(x, out=p)
    total = p.sum(dim=-1, keepdim=True)
    return x, m, total.masked_fill_(total == 0, 1.0)


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


def row_gradients(
    saved: tuple[Any, ...],
    needed: tuple[bool, ...],
    is_causal: bool,
    map_keys: tuple[int, int] | None,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    grad_map: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v and mask: with dP = dO V^T + dMap / heads, dS = P * (dP - delta - dH * ln P).

    `saved` is q, k, v, mask, out and entropy. The sums along rows are computed again: beside a mask of -1e9, lse in one
    number would not hold them.
    """
    q, k, v, mask, out, entropy = saved
    delta = q.new_zeros(q.shape[:-1])
    if grad_out is not None:
        delta += (out * grad_out).sum(dim=-1)
    if grad_entropy is not None:
        delta += grad_entropy * entropy
    tensors = zip((q, k, v, mask), needed, strict=True)
    dq, dk, dv, dmask = (torch.zeros_like(t, dtype=q.dtype) if need else None for t, need in tensors)

    blocks = _Blocks(q, k, mask, is_causal)
    for at, keys in blocks:
        b, h, _ = at
        p = blocks.buffer(1, at, keys)
        x, m, total = _exponentials(blocks.scores(at, keys), p)
        p.div_(total)
        ds = blocks.buffer(2, at, keys).copy_(delta[at].unsqueeze(-1)).neg_()
        if grad_lse is not None:  # lse of a row without keys, and perhaps its gradient, is infinite
            ds += grad_lse[at].unsqueeze(-1).masked_fill(m == -math.inf, 0.0)
        if grad_out is not None:
            if dv is not None:
                dv[b, h, :keys] += torch.bmm(p.mT, grad_out[at])
            ds.baddbmm_(grad_out[at], v[b, h, :keys].mT)
        if grad_entropy is not None:
            log_p = x.sub_(total.log()).clamp_(min=LOG_ZERO)
            ds.addcmul_(log_p, grad_entropy[at].unsqueeze(-1), value=-1.0)
        if grad_map is not None and map_keys is not None:
            in_map, in_block = _shared_keys(map_keys, keys)
            dp = grad_map[b, at[2], in_map] / q.shape[1]  # the same for every head
            ds.sub_((p[..., in_block] * dp).sum(dim=-1, keepdim=True))  # its part of delta
            ds[..., in_block].add_(dp)
        ds.mul_(p)
        if dq is not None:
            dq[at] = torch.bmm(ds, k[b, h, :keys])
        if dk is not None:
            dk[b, h, :keys] += torch.bmm(ds.mT, q[at])
        if dmask is not None:
            part = _broadcast_part(dmask, at, keys)
            part += ds.sum_to_size(part.shape)
    return dq, dk, dv, None if dmask is None else dmask.to(mask.dtype)


class _Blocks:
    """Iterates over the score matrix in blocks of whole rows and computes them, in buffers that all blocks share."""

    def __init__(self, q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool):
        self.q, self.k, self.mask, self.is_causal = q, k, mask, is_causal
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

    def scores(self, at: tuple[int, slice, slice], keys: int) -> Tensor:
        """QK^T of the block with -inf for keys that a row does not attend."""
        b, h, i = at
        s = torch.bmm(self.q[at], self.k[b, h, :keys].mT, out=self.buffer(0, at, keys))
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
