"""Shared by the tests of attention whose keys are split: chunks of a call, and what each gives of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.ops.split_keys import merge_statistics

Forward = Callable[[AttentionCall], tuple[Tensor | None, ...]]
Backward = Callable[..., tuple[Tensor | None, ...]]


def calls_of_chunks(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], **options: Any
) -> list[AttentionCall]:
    """One call for each chunk of the keys; a mask is of all of them."""
    mask = options.pop("attn_mask", None)
    masks = [None] * len(lengths) if mask is None else mask.split(list(lengths), -1)
    parts = zip(key.split(list(lengths), 2), value.split(list(lengths), 2), masks, strict=True)
    return [
        AttentionCall(query, k, v, attn_mask=m, return_lse=True, return_entropy=True, **options) for k, v, m in parts
    ]


def merged_forward(calls: Sequence[AttentionCall], forward: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """Out, log-sum-exp and entropy over the keys of all chunks."""
    results = [forward(call) for call in calls]
    outs, lses, entropies = (torch.stack([result[i] for result in results]) for i in range(3))
    lse, entropy = merge_statistics(lses, entropies)
    weights = (lses - lse).exp().nan_to_num(0.0)  # a row without any key has out 0
    return (weights[..., None] * outs).sum(0).to(outs.dtype), lse, entropy


def summed_backward(
    calls: Sequence[AttentionCall], results: tuple[Tensor, Tensor, Tensor], backward: Backward, **grads: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of all keys; each chunk is given the results over all of them."""
    parts = [backward(call, *results, **grads, needs=(True, True, True, False)) for call in calls]
    dq = torch.stack([part[0].float() for part in parts]).sum(0).to(calls[0].query.dtype)
    return dq, *(torch.cat([part[i] for part in parts], 2) for i in (1, 2))
