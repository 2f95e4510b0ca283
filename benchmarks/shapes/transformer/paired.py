"""Means of scores and paired differences between policies, with 95 % intervals."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

SHARES = ("presence", "count")
MEASURES = (*SHARES, "count_error", "found")
FIELDS = ("size", "policy", "setting", "captions", "measure", "mean", "low", "high", "difference", "difference_low",
          "difference_high")  # fmt: skip


def values(rows: list[dict], measure: str) -> np.ndarray:
    """One number per image: 0 or 1 for presence and exact count, objects for count error and found."""
    if measure == "count_error":
        return np.array([abs(int(r["found"]) - int(r["asked"])) for r in rows], dtype=np.float64)
    return np.array([int(r[measure]) for r in rows], dtype=np.float64)


def mean_interval(numbers: np.ndarray) -> tuple[float, float]:
    """Student's t interval of the mean; both ends are the mean if all numbers are equal, NaN for a single one."""
    if len(numbers) < 2:
        return math.nan, math.nan
    reach = stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers)
    return float(numbers.mean() - reach), float(numbers.mean() + reach)


def share_interval(hits: np.ndarray) -> tuple[float, float]:
    """Wilson's interval of a share; `hits` are 0 or 1."""
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def share_difference_interval(hits: np.ndarray, off: np.ndarray) -> tuple[float, float]:
    """Interval of the difference of two paired shares, mean(hits) - mean(off); the arguments are 0 or 1, by image.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17 (1998), method 10: Wilson's intervals of both, with the correlation of the pairs. Unlike
    an interval from the variance of the differences, it does not shrink to a point where no image differs.
    """
    n, p, q = len(hits), hits.mean(), off.mean()
    both, only, other = (hits * off).sum(), (hits * (1 - off)).sum(), ((1 - hits) * off).sum()
    neither = n - both - only - other
    product = (both + only) * (other + neither) * (both + other) * (only + neither)
    cross = both * neither - only * other
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    phi = cross / math.sqrt(product) if product else 0.0
    (p_low, p_high), (q_low, q_high) = share_interval(hits), share_interval(off)

    def reach(one: float, two: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * two + two**2, 0.0))

    return p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


def summary(size: str, by_policy: dict[str, list[dict]], settings: dict[str, str] | None = None) -> list[dict]:
    """Rows of means with intervals, and of differences to `"off"`, paired by image.

    Args:
        size: for the column of that name.
        by_policy: {policy: the rows of its images}, for the same captions in the same order; "off" is one of them.
        settings: {policy: what it stands for}, for policies that were chosen.

    Raises:
        ValueError: the images of a policy are not those of the same captions and noise.
    """
    out, off = [], by_policy["off"]
    for name, rows in by_policy.items():
        if [(r["caption"], str(r["seed"])) for r in rows] != [(r["caption"], str(r["seed"])) for r in off]:
            raise ValueError(f"by_policy: expected the captions and seeds of 'off' for {name!r}, got others")
        for measure in MEASURES:
            numbers, base = values(rows, measure), values(off, measure)
            low, high = share_interval(numbers) if measure in SHARES else mean_interval(numbers)
            row = {"size": size, "policy": name, "setting": (settings or {}).get(name, ""), "captions": len(rows),
                   "measure": measure, "mean": float(numbers.mean()), "low": low, "high": high}  # fmt: skip
            if name == "off":
                row |= dict.fromkeys(("difference", "difference_low", "difference_high"), "")
            else:
                change = numbers - base
                below, above = share_difference_interval(numbers, base) if measure in SHARES else mean_interval(change)
                row |= {"difference": float(change.mean()), "difference_low": below, "difference_high": above}
            out.append(row)
    return out


def best_policy(tried: dict[str, list[dict]]) -> str:
    """The policy with the smallest mean count error; of equals, the one with more images that have every object."""
    return min(tried, key=lambda n: (values(tried[n], "count_error").mean(), -values(tried[n], "presence").mean()))
