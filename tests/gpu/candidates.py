"""Candidates of autotuning: those with the plain schedule, and those with schedules that have never run on a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.runtime.errors import OutOfResources

from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates
from tests.support.oracle import assert_matches_oracle


def plain_candidates(*given: Any, **options: Any) -> list[ForwardConfig]:
    return [config for config in forward_candidates(*given, **options) if config.schedule == "plain"]


def scheduled_candidates(*given: Any, **options: Any) -> list[ForwardConfig]:
    return [config for config in forward_candidates(*given, **options) if config.schedule != "plain"]


def those_that_fit(candidates: list[ForwardConfig], query: Tensor, key: Tensor, value: Tensor) -> list[ForwardConfig]:
    """Run each candidate and check its result; returns those that do not need more than a multiprocessor has."""
    fit = []
    for config in candidates:
        try:
            statistics = {"return_lse": True, "return_entropy": True}
            actual = launch.attention_forward(AttentionCall(query, key, value, **statistics), config=config)
        except OutOfResources:
            continue
        assert_matches_oracle(actual, query, key, value)
        fit.append(config)
    return fit
