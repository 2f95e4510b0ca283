"""The entropies of a profile, layer by layer: means, slopes, changes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_attn.profiling.plan import ProfilePlan, size_name


def picture_rows(entropy: pd.DataFrame) -> pd.DataFrame:
    """The rows that tables and figures show: self- and joint attention, else cross; not of the unconditional branch.

    Raises:
        ValueError: there are none.
    """
    rows = entropy[entropy["kind"].isin(["self", "joint"])]
    rows = entropy[entropy["kind"] == "cross"] if rows.empty else rows
    rows = rows[rows["branch"] != "uncond"]
    if rows.empty:
        raise ValueError("entropy: expected rows of self-, joint or cross-attention of the prompt's branch, got none")
    return rows


def layer_means(entropy: pd.DataFrame) -> pd.DataFrame:
    """Mean entropy of each (policy, size, layer) over heads, steps and seeds, with `tokens` = N and `ln_tokens`.

    Layers keep the order in which the denoiser calls them.
    """
    rows = picture_rows(entropy)
    keys = ["policy", "size", "height", "width", "layer", "kind"]
    means = rows.groupby(keys, sort=False).agg(tokens=("seqlen_k", "first"), entropy=("mean", "mean")).reset_index()
    means["ln_tokens"] = np.log(means["tokens"])
    return means


def slopes(means: pd.DataFrame) -> pd.DataFrame:
    """The least-squares slope of entropy against ln N over sizes for each (policy, layer); NaN for a single N.

    Attention that stays equally sharp has slope 0, uniform attention 1. Layers are never pooled, because they differ in
    more than N.
    """
    rows = [
        {"policy": policy, "layer": layer, "points": len(group), "slope": slope(group["ln_tokens"], group["entropy"])}
        for (policy, layer), group in means.groupby(["policy", "layer"], sort=False)
    ]
    return pd.DataFrame(rows)


def slope(x: object, y: object) -> float:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(np.unique(x)) < 2:
        return float("nan")
    centered = x - x.mean()
    return float((centered * y).sum() / (centered**2).sum())


def changes(means: pd.DataFrame, plan: ProfilePlan) -> pd.DataFrame:
    """`means` with `change`: each layer's entropy minus its value at the training size under the default scale (nats).

    If the model's default scale was not run, minus its value under the same policy. NaN without the training size.
    """
    means = means.copy()
    means["change"] = np.nan
    if plan.reference is None:
        return means
    there = means[means["size"] == size_name(plan.reference)]
    if plan.baseline is not None:
        trained = there[there["policy"] == plan.baseline].set_index("layer")["entropy"]
        means["change"] = means["entropy"] - means["layer"].map(trained)
    else:
        trained = there.set_index(["policy", "layer"])["entropy"]
        keys = pd.MultiIndex.from_frame(means[["policy", "layer"]])
        means["change"] = means["entropy"] - trained.reindex(keys).to_numpy()
    return means


def spread(values: pd.Series) -> dict[str, float | int | None]:
    """Median, quartiles and range of one value for each layer; None for all if there are no values."""
    values = values.dropna()
    names = ("median", "lower_quartile", "upper_quartile", "min", "max")
    if values.empty:
        return {**dict.fromkeys(names), "layers": 0}
    quantiles = values.quantile([0.5, 0.25, 0.75, 0.0, 1.0])
    return {**{name: float(value) for name, value in zip(names, quantiles, strict=True)}, "layers": len(values)}
