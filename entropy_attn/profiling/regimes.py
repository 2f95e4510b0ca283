"""Which regime each layer is in: whether a scale can move its entropy, and which scale would hold it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from entropy_attn.profiling.analysis import picture_rows
from entropy_attn.profiling.plan import ProfilePlan, size_name
from entropy_attn.scale import LogN

# logit_std / sqrt(2 ln T) between which the response of Gaussian logits is at least half of its largest value, at
# T = 256. The lower end is the same for T from 16 to 4096, the upper one falls from 2.5 to 1.4 (results/regimes.csv).
AVERAGING_BELOW, ONE_HOT_ABOVE = 0.4, 1.6
REGIMES = ("averaging", "responsive", "one-hot")
MAX_FACTOR = 2.0  # bounds of the step that holds the entropy; no published factor is larger
MIN_RESPONSE = 0.01  # nats: doubling the scale moves the entropy by less than this
MIN_DRIFT = 0.02  # nats: smaller ones have no meaningful share

COLUMNS = (
    "size",
    "height",
    "width",
    "layer",
    "kind",
    "tokens",
    "train_tokens",
    "entropy",
    "logit_std",
    "std_ratio",
    "regime",
    "heads",
    "responsive_heads",
    "response",
    "drift",
    "logn_factor",
    "logn_predicted",
    "logn_measured",
    "hold_factor",
    "hold",
)


def regimes(response: pd.DataFrame, entropy: pd.DataFrame, plan: ProfilePlan) -> pd.DataFrame:
    """One row for each size and layer; docs/reference/files.md explains the columns.

    Args:
        response: rows of `Profile.response`, of the model's default scale.
        entropy: `Profile.entropy`, for what `LogN` really changed.
        plan: what was run.
    """
    rows = response[response["branch"] != "uncond"]
    keys = ["size", "height", "width", "layer", "kind"]
    table = rows.groupby(keys, sort=False).agg(
        keys=("seqlen_k", "first"), text=("text_tokens", "first"), train_tokens=("train_tokens", "first"),
        entropy=("entropy", "mean"), logit_std=("logit_std", "mean"), response=("response", "mean"),
    ).reset_index()  # fmt: skip
    table["tokens"] = table["keys"] - table["text"]
    table["train_tokens"] = table["train_tokens"].astype("Int64")
    trained = table["train_tokens"].fillna(table["tokens"]).astype(int)  # without a training size, this size
    unit = np.sqrt(2 * np.log((trained + table["text"]).clip(lower=2)))
    table["std_ratio"] = table["logit_std"] / unit
    table["regime"] = [regime_of(ratio) for ratio in table["std_ratio"]]
    of_heads = rows.groupby([*keys, "head"], sort=False)["logit_std"].mean().groupby(level=keys, sort=False)
    ratios = [heads / one for heads, one in zip((heads for _, heads in of_heads), unit, strict=True)]
    table["heads"] = [len(each) for each in ratios]
    table["responsive_heads"] = [sum(regime_of(ratio) == "responsive" for ratio in each) for each in ratios]
    table["drift"] = _drift(table, plan)
    table["logn_factor"] = [
        math.nan if pd.isna(t) else _logn_factor(int(n), int(t))
        for n, t in zip(table["tokens"], table["train_tokens"], strict=True)
    ]
    drift = table["drift"].where(table["drift"].abs() >= MIN_DRIFT)
    table["logn_predicted"] = table["response"] * np.log(table["logn_factor"]) / drift
    table["logn_measured"] = _undone(table, entropy, plan) / drift
    held = [hold_factor(d, r) for d, r in zip(table["drift"], table["response"], strict=True)]
    table["hold_factor"], table["hold"] = [factor for factor, _ in held], [how for _, how in held]
    return table[list(COLUMNS)]


def regime_of(std_ratio: float) -> str:
    """The name of the regime for logit_std / sqrt(2 ln T)."""
    if std_ratio < AVERAGING_BELOW:
        return "averaging"
    return "responsive" if std_ratio <= ONE_HOT_ABOVE else "one-hot"


def hold_factor(drift: float, response: float) -> tuple[float, str]:
    """The factor on the scale that brings the entropy back, and what it can do.

    One Newton step for H(f) = H - drift in ln f, where dH / d ln f = -response, bounded by `MAX_FACTOR`.

    Returns:
        (factor, "holds"); (bound, "bounded") where the step is longer; (1, "no response") where no factor moves the
        entropy; (NaN, "unknown") without a drift.
    """
    if math.isnan(drift):
        return math.nan, "unknown"
    if abs(drift) < MIN_DRIFT:
        return 1.0, "holds"
    if response < MIN_RESPONSE:
        return 1.0, "no response"
    step, longest = drift / response, math.log(MAX_FACTOR)
    if abs(step) > longest:
        return math.exp(math.copysign(longest, step)), "bounded"
    return math.exp(step), "holds"


def policy_file(table: pd.DataFrame, about: dict[str, Any]) -> dict[str, Any] | None:
    """What `LayerFactors` reads: the factors of every layer and size, and how each was meant; None if none is known."""
    factors: dict[str, dict[str, float]] = {}
    holds: dict[str, dict[str, str]] = {}
    for row in table[table["hold"] != "unknown"].itertuples():
        factors.setdefault(row.layer, {})[str(row.tokens)] = float(f"{row.hold_factor:.6g}")
        holds.setdefault(row.layer, {})[str(row.tokens)] = row.hold
    return {"about": about, "factors": factors, "hold": holds} if factors else None


def verdict(table: pd.DataFrame, size: str) -> str:
    """What a scale can do for this model at this size, in one sentence."""
    rows = table[table["size"] == size]
    count, responsive = len(rows), int((rows["regime"] == "responsive").sum())
    layers = f"{responsive} of {count} layers {'is' if responsive == 1 else 'are'} responsive"
    share = total_share(rows, "logn_predicted")
    if share is None:
        return f"{size}: {layers}"
    measured = total_share(rows, "logn_measured")
    did = "" if measured is None else f" (measured: {measured:.0%})"
    held = int((rows["hold"] == "holds").sum())
    return (
        f"{size}: LogN can undo {share:.0%} of the drift of this model's entropy{did}; {layers}; to first order, "
        f"factors from {1 / MAX_FACTOR:g} to {MAX_FACTOR:g} hold {held}"
    )


def total_share(rows: pd.DataFrame, column: str) -> float | None:
    """The part of the summed absolute drift that is undone; layers without a drift have no weight."""
    known = rows.dropna(subset=[column])
    weight = known["drift"].abs()
    return None if known.empty else float((known[column] * weight).sum() / weight.sum())


def _drift(table: pd.DataFrame, plan: ProfilePlan) -> pd.Series:
    if plan.reference is None:
        return pd.Series(np.nan, index=table.index)
    trained = table[table["size"] == size_name(plan.reference)].set_index("layer")["entropy"]
    return table["entropy"] - table["layer"].map(trained)


def _logn_factor(tokens: int, train_tokens: int) -> float:
    return float(LogN()._factor(math.log(max(tokens, 2)), math.log(max(train_tokens, 2))))


def _undone(table: pd.DataFrame, entropy: pd.DataFrame, plan: ProfilePlan) -> pd.Series:
    """Entropy under the default scale minus that under `LogN`, at the same steps; NaN if it was not run."""
    name = next((name for name, policy in plan.policies.items() if policy == LogN()), None)
    if name is None:
        return pd.Series(np.nan, index=table.index)
    rows = picture_rows(entropy)
    rows = rows[(rows["policy"] == name) & rows["step"].isin(plan.regime_at)]
    means = rows.groupby(["size", "layer"])["mean"].mean()
    return table["entropy"] - means.reindex(pd.MultiIndex.from_frame(table[["size", "layer"]])).to_numpy()
