"""The summary of a profile, as plain values for JSON."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from entropy_attn.profiling.analysis import changes, layer_means, slopes, spread
from entropy_attn.profiling.plan import size_name
from entropy_attn.profiling.result import Profile


def summarize(result: Profile) -> dict[str, Any]:
    """`Profile.summary`; docs/profile.md explains each key."""
    plan = result.plan
    means = changes(layer_means(result.entropy), plan)
    lines = slopes(means)
    slope, by_layer, entropy, relative, change, seconds = {}, {}, {}, {}, {}, {}
    for policy in plan.policies:
        rows = means[means["policy"] == policy]
        fits = lines[lines["policy"] == policy]
        slope[policy] = spread(fits["slope"])
        by_layer[policy] = {r.layer: None if math.isnan(r.slope) else float(r.slope) for r in fits.itertuples()}
        by_size = rows.groupby("size", sort=False)
        entropy[policy] = {size: float(group["entropy"].mean()) for size, group in by_size}
        relative[policy] = {size: _relative_entropy(group) for size, group in by_size}
        change[policy] = {size: _change(group) for size, group in by_size}
        runs = result.runs[result.runs["policy"] == policy]
        seconds[policy] = {size: float(group.mean()) for size, group in runs.groupby("size", sort=False)["seconds"]}
    return {
        **plan.described(),
        "layers_measured": int(means["layer"].nunique()),
        "training_size": None if plan.reference is None else size_name(plan.reference),
        "unit": "nats",
        "slope": slope,
        "slope_per_layer": by_layer,
        "change_from_training": change,
        "mean_entropy": entropy,
        "mean_entropy_over_ln_tokens": relative,
        "seconds_per_run": seconds,
        "seconds_total": float(result.runs["seconds"].sum()),
        "notes": list(result.notes),
    }


def _relative_entropy(group: pd.DataFrame) -> float | None:
    """Mean of H / ln N, which is 1 for uniform attention; layers with a single token have no such ratio."""
    many = group[group["tokens"] > 1]
    return float((many["entropy"] / many["ln_tokens"]).mean()) if len(many) else None


def _change(group: pd.DataFrame) -> dict[str, float | int | None]:
    """Spread over layers; `mean_distance` is the mean absolute value, in which layers do not cancel out."""
    found = group["change"].dropna()
    return {**spread(found), "mean_distance": float(found.abs().mean()) if len(found) else None}
