"""The implementations of attention by their names, as `impl=` takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels.common import support
from ..kernels.common.call import AllResults, AttentionCall, Results
from .operator import run_fused, run_fused_all, run_sdpa
from .reference import all_results
from .sdpa import attention_sdpa_all
from .tensor_kinds import traced


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention."""

    name: str
    reasons: Callable[[AttentionCall], list[str]]  # why it cannot serve a call; empty where it can
    run: Callable[[AttentionCall], Results]  # of calls without key groups and the statistics of `row_statistics`
    run_all: Callable[[AttentionCall], AllResults]  # of every call
    takes_transforms: bool = False  # whether functorch's transforms and forward-mode gradients pass through it


def _no_reasons(call: AttentionCall) -> list[str]:
    return []


def _reference_reasons(call: AttentionCall) -> list[str]:
    if call.query.device.type == "mps":
        return ["the reference computes in float64, which device mps does not have"]
    return []


def _run_reference(call: AttentionCall) -> AllResults:
    """The oracle's results in the dtypes of the others."""
    exact = all_results(call, enable_gqa=call.grouped)
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    wanted = (call.return_lse, call.return_entropy, True, call.return_variance, call.return_max, True)
    statistics = (
        t.to(dtype) if t is not None and is_wanted else None for t, is_wanted in zip(exact[1:], wanted, strict=True)
    )
    return AllResults(exact.out.to(call.query.dtype), *statistics)


def _four(call: AttentionCall) -> Results:
    return _run_reference(call)[:4]


def _fused_reasons(call: AttentionCall) -> list[str]:
    reasons = support.unsupported_reasons(call)
    # attributes instead of `row_statistics`, which is one more function call for the host
    if (call.return_variance or call.return_max or call.mass_keys is not None) and _is_watched(call):
        reasons.append("statistics 'variance', 'max' and 'mass' are not in the operator that dispatch modes record")
    return reasons


def _is_watched(call: AttentionCall) -> bool:
    """Whether something records the call that would not see a launch; a graph has an operator for all calls."""
    return not torch.compiler.is_compiling() and (type(call.query) is not torch.Tensor or traced())


TRITON = Implementation("triton", _fused_reasons, run_fused, run_fused_all)
SDPA = Implementation("sdpa", _no_reasons, run_sdpa, attention_sdpa_all)
REFERENCE = Implementation("reference", _reference_reasons, _four, _run_reference, takes_transforms=True)
IMPLEMENTATIONS = {each.name: each for each in (TRITON, SDPA, REFERENCE)}
