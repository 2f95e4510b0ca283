"""The implementations of this package, as the benchmark calls them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from entropy_attn.bench.implementations.contract import TASKS, Ask, Implementation, Results
from entropy_attn.ops.api import attention, unsupported_reasons

ORACLE_SCORES = 1024**2  # the reference has a dozen float64 matrices: larger calls only take time


def _options(ask: Ask) -> dict[str, Any]:
    return {"return_lse": ask.task == "lse", "return_entropy": ask.task == "entropy", "map_keys": ask.map_keys}


def _attend(impl: str, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    result = attention(query, key, value, **_options(ask), impl=impl)
    return {name: getattr(result, name) for name in ask.results}


def _reasons(impl: str, query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    reasons = []
    if impl == "reference" and query.shape[2] * key.shape[2] > ORACLE_SCORES:
        reasons.append(f"expected at most 1024 x 1024 scores, got {query.shape[2]} x {key.shape[2]}")
    with torch.enable_grad():
        query, key, value = (t.detach().requires_grad_(ask.gradient) for t in (query, key, value))
        return reasons + unsupported_reasons(query, key, value, **_options(ask), impl=impl)


def _ours(name: str, impl: str, tasks: tuple[str, ...] = TASKS, matrices: float = 0.0) -> Implementation:
    attend, reasons = functools.partial(_attend, impl), functools.partial(_reasons, impl)
    return Implementation(name, attend, tasks, reasons=reasons, ours=True, matrices=matrices)


OURS = (
    _ours("auto", "auto"),
    _ours("triton", "triton"),
    _ours("ours-sdpa", "sdpa", TASKS[1:]),  # a plain call would be torch's own, which has a row
    _ours("reference", "reference", matrices=12.0),
)
