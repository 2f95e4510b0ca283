"""Means of scores and paired differences between policies, with 95 % intervals."""

from __future__ import annotations

import numpy as np

from entropy_attn.evaluation.statistics import mean, proportion, proportion_difference

SHARES = ("presence", "count")
MEASURES = {"presence": "presence", "count": "exact count", "count_error": "count error", "found": "found"}
FIELDS = ("size", "policy", "setting", "captions", "measure", "mean", "low", "high", "difference", "difference_low",
          "difference_high")  # fmt: skip


def values(rows: list[dict], measure: str) -> np.ndarray:
    """One number per image: 0 or 1 for presence and exact count, objects for count error and found."""
    return np.array([row[MEASURES[measure]] for row in rows], dtype=np.float64)


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
        if [(r["caption"], r["seed"]) for r in rows] != [(r["caption"], r["seed"]) for r in off]:
            raise ValueError(f"by_policy: expected the captions and seeds of 'off' for {name!r}, got others")
        for measure in MEASURES:
            numbers, base = values(rows, measure), values(off, measure)
            share = measure in SHARES
            value = proportion(int(numbers.sum()), len(numbers)) if share else mean(numbers)
            row = {"size": size, "policy": name, "setting": (settings or {}).get(name, ""), "captions": len(rows),
                   "measure": measure, "mean": value.mean, "low": value.low, "high": value.high}  # fmt: skip
            if name == "off":
                row |= dict.fromkeys(("difference", "difference_low", "difference_high"), "")
            else:
                change = proportion_difference(numbers, base) if share else mean(numbers - base)
                row |= dict(zip(("difference", "difference_low", "difference_high"), change, strict=True))
            out.append(row)
    return out


def best_policy(tried: dict[str, list[dict]]) -> str:
    """The policy with the smallest mean count error; of equals, the one with more images that have every object."""
    return min(tried, key=lambda n: (values(tried[n], "count_error").mean(), -values(tried[n], "presence").mean()))
