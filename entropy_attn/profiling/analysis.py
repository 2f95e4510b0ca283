"""What the entropies of a profile say, layer by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_attn.profiling.plan import ProfilePlan, size_name


def picture_rows(entropy: pd.DataFrame) -> pd.DataFrame:
    """What tables and figures are about: self and joint attention, else cross; the prompt's half of the batch."""
    rows = entropy[entropy["kind"].isin(["self", "joint"])]
    rows = entropy[entropy["kind"] == "cross"] if rows.empty else rows
    rows = rows[rows["branch"] != "uncond"]
    if rows.empty:
        raise ValueError("entropy has no rows of attention to the picture: nothing to fit or to plot")
    return rows


def layer_means(entropy: pd.DataFrame) -> pd.DataFrame:
    """Mean entropy of every (policy, size, layer) over heads, steps and seeds, with its `tokens` = N and ln N.

    Layers keep the order in which the denoiser calls them.
    """
    rows = picture_rows(entropy)
    keys = ["policy", "size", "height", "width", "layer", "kind"]
    means = rows.groupby(keys, sort=False).agg(tokens=("seqlen_k", "first"), entropy=("mean", "mean")).reset_index()
    means["ln_tokens"] = np.log(means["tokens"])
    return means


def slopes(means: pd.DataFrame) -> pd.DataFrame:
    """Of every (policy, layer), the least-squares slope of entropy against ln N over sizes; NaN for a single N.

    Attention that stays equally sharp has slope 0, uniform attention 1. Layers are never pooled: those of different
    sizes differ in more than N.
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
    centred = x - x.mean()
    return float((centred * y).sum() / (centred**2).sum())


def changes(means: pd.DataFrame, plan: ProfilePlan) -> pd.DataFrame:
    """`means` with `change`: each layer's entropy less its own at the training size under the model's own scale, nats.

    Where the model's own scale was not run, less its own under the same policy; NaN where the training size was not.
    """
    means = means.copy()
    means["change"] = np.nan
    if plan.reference is None:
        return means
    there = means[means["size"] == size_name(plan.reference)]
    if plan.baseline is not None:
        own = there[there["policy"] == plan.baseline].set_index("layer")["entropy"]
        means["change"] = means["entropy"] - means["layer"].map(own)
    else:
        own = there.set_index(["policy", "layer"])["entropy"]
        means["change"] = (
            means["entropy"] - own.reindex(pd.MultiIndex.from_frame(means[["policy", "layer"]])).to_numpy()
        )
    return means


def spread(values: pd.Series) -> dict[str, float | int | None]:
    """Median, quartiles and ends of one number a layer; None for all where there is none."""
    values = values.dropna()
    names = ("median", "lower_quartile", "upper_quartile", "min", "max")
    if values.empty:
        return {**dict.fromkeys(names), "layers": 0}
    quantiles = values.quantile([0.5, 0.25, 0.75, 0.0, 1.0])
    return {**{name: float(value) for name, value in zip(names, quantiles, strict=True)}, "layers": len(values)}
