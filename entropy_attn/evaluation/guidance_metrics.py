"""The rows of guidance.csv: means and paired differences, repair and damage, tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from entropy_attn.evaluation.statistics import Interval, difference, holm, mcnemar, mean_over_prompts, proportion

Row = dict[str, Any]
Key = tuple[int, int]  # prompt, repetition
Scores = Mapping[str, Mapping[Key, Mapping[str, float]]]  # {arm: {image: {metric: score}}}

BINARY = ("presence", "binding", "exact count")  # of the exact checker of shapes: 1 or 0


def mean_rows(scores: Scores, baseline: str) -> list[Row]:
    """A row for each arm and metric: its mean, and its paired difference to the baseline.

    Intervals are 95 % bootstrap intervals over prompts, with all repetitions of a prompt together, and Wilson's for
    shares where there is one repetition. p is McNemar's exact test over images for yes-or-no metrics; p_holm is
    adjusted for the arms of a metric.

    Args:
        scores: the scores of each image; a metric may be missing for a prompt, but then in every arm.
        baseline: the arm without guidance.
    """
    rows = []
    for metric in dict.fromkeys(name for images in scores.values() for found in images.values() for name in found):
        of_metric = []
        base = _of_metric(scores[baseline], metric)
        for arm, images in scores.items():
            found = _of_metric(images, metric)
            row: Row = {"arm": arm, "metric": metric, "images": len(found)}
            row |= _named("value", mean_over_prompts(found, metric in BINARY))
            change, p = Interval(math.nan, math.nan, math.nan), math.nan
            if arm != baseline and len({prompt for prompt, _ in found}) > 1:
                change = difference(dict(found), dict(base), {key: key[0] for key in found})
            if arm != baseline:
                if metric in BINARY:
                    p = mcnemar([base[key] == 1 for key in found], [found[key] == 1 for key in found])
            of_metric.append(row | _named("difference", change) | {"p": p})
        for row, adjusted in zip(of_metric, holm([row["p"] for row in of_metric]), strict=True):
            rows.append(row | {"p_holm": adjusted})
    return rows


def repair_rows(scores: Scores, baseline: str) -> list[Row]:
    """A row for each other arm and yes-or-no metric: what becomes of the images that fail and of those that succeed.

    On images that failed, any other image succeeds sometimes; so a repaired share says something only beside that of
    the controls, and beside the damaged share. Intervals are Wilson's.

    Args:
        scores: the scores of each image.
        baseline: the arm without guidance.
    """
    rows = []
    for metric in BINARY:
        base = _of_metric(scores[baseline], metric)
        failed, right = [key for key in base if not base[key]], [key for key in base if base[key]]
        for arm, images in scores.items():
            if arm == baseline or not base:
                continue
            found = _of_metric(images, metric)
            repaired, damaged = sum(found[k] == 1 for k in failed), sum(found[k] == 0 for k in right)
            row: Row = {"arm": arm, "metric": metric, "failed": len(failed), "repaired": repaired}
            row |= _named("repaired_share", _share(repaired, len(failed)))
            row |= {"succeeded": len(right), "damaged": damaged, **_named("damaged_share", _share(damaged, len(right)))}
            rows.append(row)
    return rows


def _of_metric(images: Mapping[Key, Mapping[str, float]], metric: str) -> dict[Any, float]:
    return {key: found[metric] for key, found in images.items() if metric in found}


def _share(count: int, total: int) -> Interval:
    return proportion(count, total) if total else Interval(math.nan, math.nan, math.nan)


def _named(name: str, found: Interval) -> Row:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
