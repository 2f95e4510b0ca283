"""The summary of a profile, as plain values for JSON."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from entropy_attn.profiling.analysis import changes, layer_means, slopes, spread
from entropy_attn.profiling.plan import size_name
from entropy_attn.profiling.regimes import REGIMES, total_share, verdict
from entropy_attn.profiling.result import Profile


def summarize(result: Profile) -> dict[str, Any]:
    """`Profile.summary`; docs/reference/files.md explains each key."""
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
        "regimes": _regimes(result),
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


def _regimes(result: Profile) -> dict[str, Any] | None:
    """By size: the verdict, how many layers are in each regime, and the rows of regimes.csv."""
    table = result.regimes
    if table is None:
        return None
    found = {}
    for size, rows in table.groupby("size", sort=False):
        counts = rows["regime"].value_counts()
        found[str(size)] = {
            "verdict": verdict(table, str(size)),
            **{name: int(counts.get(name, 0)) for name in REGIMES},
            "logn_predicted": total_share(rows, "logn_predicted"),
            "logn_measured": total_share(rows, "logn_measured"),
            "layers": [
                {name: None if pd.isna(value) else value for name, value in row.items()}
                for row in rows.drop(columns=["size", "height", "width"]).to_dict("records")
            ],
        }
    return found
