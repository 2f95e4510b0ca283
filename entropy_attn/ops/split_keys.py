"""Statistics of attention whose keys are split into chunks, from those of the chunks.

Of one row, let chunk r alone have the log-sum-exp L_r and the entropy H_r. The row's log-sum-exp L is the logsumexp of
the L_r, chunk r holds w_r = exp(L_r - L) of its probability, and by the chain rule of Shannon's entropy

    H = sum_r w_r (H_r - ln w_r).

The probability of a key is exp(logit - L). The w_r differ between heads, so a map takes its mean over them last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .reference import softmax_scale

BLOCK_SCORES = 1 << 24  # of a map's logits that are held at once


def merge_statistics(lse: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and entropy of rows over all keys.

    Args:
        lse: (chunks, ...), -inf for a row without keys in a chunk.
        entropy: (chunks, ...) in nats.

    Returns:
        Both with the shape (...). A row without any key has -inf and 0.
    """
    whole = lse.logsumexp(0)
    weights = (lse - whole).exp().masked_fill(whole == -math.inf, 0.0)
    return whole, (torch.special.entr(weights) + weights * entropy).sum(0)


def map_of_keys(
    query: Tensor, key: Tensor, lse: Tensor, *, scale: float | Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Probabilities of some of the keys, from the log-sum-exp of the rows over all keys.

    Args:
        query: (B, H, Nq, D).
        key: (B, H, M, D), the keys of the map.
        lse: (B, H, Nq), of all keys.
        scale: None (1 / sqrt(D)), a number, or a tensor (), (H,) or (B, H).
        mask: of these keys, (B or 1, H or 1, 1, M): True = attend, or added to the logits.

    Returns:
        (B, Nq, M), the mean over the heads, in the dtype of `lse`. 0 for a row without keys.
    """
    rows = query.shape[-2]
    found = query.new_empty((query.shape[0], rows, key.shape[-2]), dtype=lse.dtype)
    key, factor = key.to(lse.dtype), softmax_scale(scale, query)
    empty = lse == -math.inf
    block = max(1, BLOCK_SCORES // max(1, query.shape[0] * query.shape[1] * key.shape[-2]))
    for start in range(0, rows, block):
        part = slice(start, start + block)
        logits = (query[:, :, part].to(lse.dtype) * factor).to(lse.dtype) @ key.mT
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
        probabilities = (logits - lse[:, :, part, None]).exp()
        found[:, part] = probabilities.masked_fill(empty[:, :, part, None], 0.0).mean(1)
    return found
