"""What a profile gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entropy_attn.profiling.plan import ProfilePlan, Size


@dataclass
class Profile:
    """Measurements and pictures of one profile. Entropies are in nats.

    plan: what was run.
    entropy: a row a layer, step and branch, with `size height width policy seed` in front; `mean std min max` are over
        the queries of all heads, `head_min` and `head_max` are the lowest and the highest mean of a head. With
        `plan.heads` a row a head, with the columns of `EntropyRecorder.to_dataframe()`.
    heads: a row a layer, branch and head of the layers that attend to the picture: the mean over steps.
    runs: a row a run, with its `seconds`.
    pictures: {(size, policy, seed): a picture a prompt}, of a video its middle frame; none with `pictures=False`.
    maps: {policy: {layer: (rows, columns) array}}, the entropy of every token of the first prompt at the largest size
        and for the first seed, mean over heads and steps.
    notes: what could not be measured or compared, and why.
    files: {name: path} of what was written.
    """

    plan: ProfilePlan
    entropy: pd.DataFrame
    runs: pd.DataFrame
    pictures: dict[tuple[Size, str, int], list[Any]] = field(default_factory=dict)
    maps: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    heads: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """The figures worth quoting, as plain values; docs/profile.md explains each."""
        from entropy_attn.profiling.summary import summarize

        return summarize(self)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<Profile: {len(plan.sizes)} sizes, scales {', '.join(plan.policies)}, {plan.steps} steps, "
            f"{self.entropy['layer'].nunique()} layers>"
        )


@dataclass(frozen=True)
class RunResult:
    """One finished run: its rows, its pictures, and at the largest size its maps."""

    entropy: pd.DataFrame
    heads: pd.DataFrame
    seconds: float
    pictures: list[Any]
    maps: Mapping[str, np.ndarray] | None
