"""The implementations of attention by their names, as `impl=` takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels.common import support
from ..kernels.common.call import AttentionCall, Results
from .operator import run_fused, run_sdpa
from .reference import attention_reference


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention."""

    name: str
    reasons: Callable[[AttentionCall], list[str]]  # why it cannot serve a call; empty where it can
    run: Callable[[AttentionCall], Results]
    takes_transforms: bool = False  # whether functorch's transforms and forward-mode gradients pass through it


def _no_reasons(call: AttentionCall) -> list[str]:
    return []


def _reference_reasons(call: AttentionCall) -> list[str]:
    if call.query.device.type == "mps":
        return ["the reference computes in float64, which device mps does not have"]
    return []


def _run_reference(call: AttentionCall) -> Results:
    """The oracle's results in the dtypes of the others."""
    query = call.query
    out, lse, entropy, head_mean = attention_reference(
        query,
        call.key,
        call.value,
        attn_mask=call.attn_mask,
        is_causal=call.is_causal,
        scale=call.scale,
        enable_gqa=call.grouped,
        map_keys=call.map_keys,
    )
    stats_dtype = torch.promote_types(query.dtype, torch.float32)
    return (
        out.to(query.dtype),
        lse.to(stats_dtype) if call.return_lse else None,
        entropy.to(stats_dtype) if call.return_entropy else None,
        None if head_mean is None else head_mean.to(stats_dtype),
    )


TRITON = Implementation("triton", support.unsupported_reasons, run_fused)
SDPA = Implementation("sdpa", _no_reasons, run_sdpa)
REFERENCE = Implementation("reference", _reference_reasons, _run_reference, takes_transforms=True)
IMPLEMENTATIONS = {each.name: each for each in (TRITON, SDPA, REFERENCE)}
