"""Intervals and tests for paired images: the same prompt and the same noise under two arms."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from entropy_attn.validation import expected

RESAMPLES = 10_000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and its 95 % interval; both ends are NaN where there is only one group."""

    mean: float
    low: float
    high: float


def interval(groups: Iterable[Sequence[float]], resamples: int = RESAMPLES) -> Interval:
    """Mean of all values, with a 95 % percentile bootstrap interval over groups.

    Args:
        groups: the values of each group, such as those of all seeds of a prompt. A group is drawn as a whole, because
            its values are not independent.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: there are fewer than two groups with values.
    """
    filled = [values for values in groups if len(values)]
    if len(filled) < 2:
        raise ValueError(f"groups: expected at least two for an interval over them, got {len(filled)}")
    sums, sizes = (np.array([f(values) for values in filled], dtype=float) for f in (sum, len))
    return _ratio(sums, sizes, resamples)


def difference(
    values: Mapping[Hashable, float],
    baseline: Mapping[Hashable, float],
    group: Mapping[Hashable, Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean paired difference `values - baseline`, with a 95 % percentile bootstrap interval.

    Args:
        values: {image: value} of an arm.
        baseline: the same of the arm it is compared with; images that are not in both are left out.
        group: {image: group} as in `interval`, such as its prompt; None makes every image a group.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: there are fewer than two groups with a pair.
    """
    pairs: dict[Hashable, list[float]] = {}
    for key in values:
        if key in baseline:
            pairs.setdefault(key if group is None else group[key], []).append(values[key] - baseline[key])
    return interval(pairs.values(), resamples)


def relative_change(values: Sequence[float], baseline: Sequence[float], resamples: int = RESAMPLES) -> Interval:
    """Change of the mean relative to that of a paired baseline, `mean(values) / mean(baseline) - 1`, with its interval.

    Args:
        values: a positive value of each item, such as its loss.
        baseline: the values of the same items under the arm they are compared with.
        resamples: number of bootstrap samples, each of whole pairs.

    Raises:
        ValueError: the lengths differ, or there are fewer than two pairs.
    """
    if len(values) != len(baseline) or len(values) < 2:
        raise ValueError(f"values: expected at least two pairs, got {len(values)} and {len(baseline)}")
    found = _ratio(np.asarray(values, dtype=float), np.asarray(baseline, dtype=float), resamples)
    return Interval(*(value - 1.0 for value in found))


def proportion(successes: int, total: int) -> Interval:
    """A proportion with Wilson's 95 % interval, which is right for 0 and 1, too."""
    from scipy import stats

    if not 0 <= successes <= total or total < 1:
        raise ValueError(expected("successes", f"0 to {total} of at least one", successes))
    found = stats.binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / total, float(found.low), float(found.high))


def mean_over_prompts(values: Mapping[tuple[int, int], float], is_share: bool) -> Interval:
    """Mean over images, with a 95 % interval over prompts; both ends are NaN if there is only one prompt.

    Args:
        values: {(prompt, repetition): value of the image}.
        is_share: the values are 1 or 0. Where every prompt has one image, their interval is Wilson's, because a
            bootstrap of equal values has no width.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("values: expected at least one, got none")
    by_prompt: dict[int, list[float]] = {}
    for (prompt, _), value in values.items():
        by_prompt.setdefault(prompt, []).append(value)
    if is_share and len(by_prompt) == len(values):
        return proportion(int(sum(values.values())), len(values))
    if len(by_prompt) < 2:
        return Interval(float(np.mean(list(values.values()))), math.nan, math.nan)
    return interval(by_prompt.values())


def proportion_difference(hits: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Difference of two paired proportions, with Newcombe's 95 % interval.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17 (1998), method 10: Wilson's intervals of both, with the correlation of the pairs.
    Unlike a bootstrap of the differences, it does not shrink to a point where no image differs.

    Args:
        hits: 1 or 0 for each image of an arm.
        baseline: the same of the arm it is compared with, for the same images in the same order.

    Raises:
        ValueError: the lengths differ, there is no image, or a value is neither 1 nor 0.
    """
    a, b = _zeros_and_ones("hits", hits), _zeros_and_ones("baseline", baseline)
    if len(a) != len(b):
        raise ValueError(f"hits, baseline: expected equal lengths, got {len(a)} and {len(b)}")
    n = len(a)
    both, only, other = (a * b).sum(), (a * (1 - b)).sum(), ((1 - a) * b).sum()
    neither = n - both - only - other
    product = (both + only) * (other + neither) * (both + other) * (only + neither)
    cross = both * neither - only * other
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    phi = cross / math.sqrt(product) if product else 0.0
    p, p_low, p_high = proportion(int(a.sum()), n)
    q, q_low, q_high = proportion(int(b.sum()), n)

    def reach(one: float, two: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * two + two**2, 0.0))

    return Interval(float((a - b).mean()), p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low))


def mean(values: Sequence[float]) -> Interval:
    """Mean of independent values, with Student's 95 % interval; both ends are NaN for a single value."""
    from scipy import stats

    numbers = np.asarray(values, dtype=float)
    if len(numbers) == 0:
        raise ValueError("values: expected at least one, got none")
    if len(numbers) == 1:
        return Interval(float(numbers[0]), math.nan, math.nan)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1) * stats.sem(numbers)
    return Interval(float(numbers.mean()), float(numbers.mean() - reach), float(numbers.mean() + reach))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """p of McNemar's exact test that two arms succeed equally often on the same images; 1.0 if they never differ.

    Args:
        first: success of each image under one arm.
        second: success of the same images under another.

    Raises:
        ValueError: the lengths differ.
    """
    from scipy import stats

    if len(first) != len(second):
        raise ValueError(f"first, second: expected equal lengths, got {len(first)} and {len(second)}")
    gained = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    lost = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several tests, in the order of the arguments (S. Holm, 1979); NaN is no test."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN is last
    adjusted = np.full(len(p), np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def _zeros_and_ones(name: str, values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if len(found) == 0:
        raise ValueError(f"{name}: expected at least one value, got none")
    others = found[~np.isin(found, (0.0, 1.0))]
    if len(others):
        raise ValueError(expected(name, "values of 0 and 1", others[0].item()))
    return found


def _ratio(numerators: np.ndarray, denominators: np.ndarray, resamples: int) -> Interval:
    from scipy import stats

    drawn = stats.bootstrap(
        (numerators, denominators), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
        n_resamples=resamples, batch=1000, confidence_level=CONFIDENCE, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(float(numerators.sum() / denominators.sum()), float(drawn.low), float(drawn.high))
