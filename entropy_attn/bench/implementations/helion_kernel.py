"""Attention as a user of Helion would write it: output, lse and entropy in one pass, from fifty lines of Python.

Helion chooses tiles by timing, for as long as its variable HELION_AUTOTUNE_EFFORT says. Without it, Helion's default is
"full", ten minutes for each shape; here it is "quick".
"""

from __future__ import annotations

import os

import helion
import helion.language as hl
import torch
from torch import Tensor

from entropy_attn.bench.implementations.contract import Ask, Results

LOG2E = 1.4426950408889634
EFFORT = os.environ.get("HELION_AUTOTUNE_EFFORT", "quick")


@helion.kernel(static_shapes=True, autotune_effort=EFFORT)
def attention(query: Tensor, key: Tensor, value: Tensor, with_entropy: hl.constexpr) -> tuple[Tensor, Tensor, Tensor]:
    """Of (batch * heads, N, D): the output, and lse and entropy (batch * heads, N) in float32 (nats)."""
    batch, seqlen_q, _ = query.size()
    seqlen_k = key.size(1)
    head_dim = hl.specialize(query.size(2))
    factor = head_dim**-0.5 * LOG2E
    out = torch.empty_like(query)
    lse = torch.empty([batch, seqlen_q], dtype=torch.float32, device=query.device)
    entropy = torch.empty([batch, seqlen_q], dtype=torch.float32, device=query.device)
    for tile_b, tile_q in hl.tile([batch, seqlen_q]):
        q = query[tile_b, tile_q, :]
        m = hl.full([tile_b, tile_q], -1e30, dtype=torch.float32)  # finite: the first correction must not be NaN
        total = hl.zeros([tile_b, tile_q], dtype=torch.float32)
        shifted = hl.zeros([tile_b, tile_q], dtype=torch.float32)  # sum of p (s - m), with p of the largest score 1
        acc = hl.zeros([tile_b, tile_q, head_dim], dtype=torch.float32)
        for tile_k in hl.tile(seqlen_k):
            k = key[tile_b, tile_k, :]
            scores = hl.dot(q, k.transpose(1, 2)) * factor
            highest = torch.maximum(m, torch.amax(scores, -1))
            scores = scores - highest[:, :, None]
            p = torch.exp2(scores)
            correction = torch.exp2(m - highest)
            if with_entropy:
                shifted = correction * (shifted + (m - highest) * total) + torch.sum(p * scores, -1)
            total = total * correction + torch.sum(p, -1)
            v = value[tile_b, tile_k, :]
            acc = hl.dot(p.to(v.dtype), v, acc=acc * correction[:, :, None])
            m = highest
        out[tile_b, tile_q, :] = (acc / total[:, :, None]).to(out.dtype)
        lse[tile_b, tile_q] = (m + torch.log2(total)) / LOG2E
        entropy[tile_b, tile_q] = (torch.log2(total) - shifted / total) / LOG2E
    return out, lse, entropy


def attend(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """What `ask` names, of tensors (B, H, N, D)."""
    flat = (t.flatten(0, 1) for t in (query, key, value))
    out, lse, entropy = attention(*flat, ask.task == "entropy")
    rows = query.shape[:3]
    results = {"out": out.view(query.shape), "lse": lse.view(rows), "entropy": entropy.view(rows)}
    return {name: results[name] for name in ask.results}
