"""The results of a profile."""

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
    """Measurements and images of one profile. Entropies are in nats.

    Attributes:
        plan: what was run.
        entropy: a row for each layer, step and branch; `size height width policy seed` are the first columns. `mean std
            min max` are over the queries of all heads; `head_min` and `head_max` are the lowest and highest mean of a
            head. With `plan.heads` a row for each head, with the columns of `EntropyRecorder.to_dataframe()`.
        runs: a row for each run, with its `seconds`.
        pictures: {(size, policy, seed): an image for each prompt}; for a video, its middle frame. Empty with
            `pictures=False`.
        maps: {policy: {layer: array (rows, columns)}}, the entropy of each token of the first prompt at the largest
            size and for the first seed, mean over heads and steps.
        heads: a row for each layer, branch and head of the layers that the figures show: the mean over steps.
        response: a row for each layer, branch, head and step at which the regime was measured, with the columns of
            `ResponseRecorder.to_dataframe()`; None where it was not measured.
        notes: what could not be measured or compared, and why.
        files: {name: path} of the files that were written.
    """

    plan: ProfilePlan
    entropy: pd.DataFrame
    runs: pd.DataFrame
    pictures: dict[tuple[Size, str, int], list[Any]] = field(default_factory=dict)
    maps: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    heads: pd.DataFrame | None = None
    response: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """Slopes, changes from the training size and mean entropies, as plain values; see docs/reference/files.md."""
        from entropy_attn.profiling.summary import summarize

        return summarize(self)

    @property
    def regimes(self) -> pd.DataFrame | None:
        """A row for each size and layer: the regime, what `LogN` undoes, the factor that holds the entropy.

        See docs/profile.md. None where the regime was not measured.
        """
        from entropy_attn.profiling.regimes import regimes

        return None if self.response is None else regimes(self.response, self.entropy, self.plan)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<Profile: {len(plan.sizes)} sizes, scales {', '.join(plan.policies)}, {plan.steps} steps, "
            f"{self.entropy['layer'].nunique()} layers>"
        )


@dataclass(frozen=True)
class RunResult:
    """One finished run: its rows, its images, and its maps at the largest size."""

    entropy: pd.DataFrame
    heads: pd.DataFrame
    response: pd.DataFrame
    seconds: float
    pictures: list[Any]
    maps: Mapping[str, np.ndarray] | None
    step_maps: Mapping[str, np.ndarray] | None = None  # {layer: (steps, rows, columns)}, NaN where a layer did not run
