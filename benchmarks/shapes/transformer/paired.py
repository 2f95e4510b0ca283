"""Means of scores and paired differences between policies, with 95 % intervals."""

from __future__ import annotations

import numpy as np
from scipy import stats

MEASURES = ("presence", "count", "count_error", "found")
FIELDS = ("size", "policy", "captions", "measure", "mean", "low", "high", "difference", "difference_low",
          "difference_high")  # fmt: skip


def values(rows: list[dict], measure: str) -> np.ndarray:
    """One number per image: 0 or 1 for presence and exact count, objects for count error and found."""
    if measure == "count_error":
        return np.array([abs(int(r["found"]) - int(r["asked"])) for r in rows], dtype=np.float64)
    return np.array([int(r[measure]) for r in rows], dtype=np.float64)


def interval(numbers: np.ndarray) -> tuple[float, float]:
    """Student's t interval of the mean; both ends are the mean if all numbers are equal."""
    mean, error = numbers.mean(), stats.sem(numbers) if len(numbers) > 1 else np.nan
    reach = stats.t.ppf(0.975, len(numbers) - 1) * error if len(numbers) > 1 else np.nan
    return float(mean - reach), float(mean + reach)


def summary(size: int, by_policy: dict[str, list[dict]]) -> list[dict]:
    """Rows of means with intervals, and of differences to `"off"`, paired by image.

    Proportions have Wilson's interval, other means and all differences Student's t.
    """
    out = []
    for name, rows in by_policy.items():
        for measure in MEASURES:
            numbers = values(rows, measure)
            if measure in ("presence", "count"):
                share = stats.binomtest(int(numbers.sum()), len(numbers)).proportion_ci(method="wilson")
                low, high = share.low, share.high
            else:
                low, high = interval(numbers)
            row = {"size": size, "policy": name, "captions": len(rows), "measure": measure,
                   "mean": float(numbers.mean()), "low": low, "high": high}  # fmt: skip
            if name == "off":
                row |= dict.fromkeys(("difference", "difference_low", "difference_high"), "")
            else:
                change = numbers - values(by_policy["off"], measure)
                below, above = interval(change)
                row |= {"difference": float(change.mean()), "difference_low": below, "difference_high": above}
            out.append(row)
    return out


def best_strength(tried: dict[str, list[dict]]) -> str:
    """The policy with the smallest mean count error; of equals, the one with more images that have every object."""
    return min(tried, key=lambda n: (values(tried[n], "count_error").mean(), -values(tried[n], "presence").mean()))
