"""The rows of `scale.csv`: a value and its difference to the default scale, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_attn.evaluation import distances
from entropy_attn.evaluation.statistics import (
    Interval,
    holm,
    interval,
    mcnemar,
    mean_over_prompts,
    proportion_difference,
    relative_change,
)

Row = dict[str, Any]
Scores = Mapping[str, Mapping[tuple[int, int], Mapping[str, float]]]  # {policy: {(prompt, seed): {metric: score}}}

YES_OR_NO = ("presence", "exact count", "binding")  # their differences are tested with McNemar's test
FIELDS = ("size", "policy", "metric", "images", "value", "low", "high", "difference", "difference_low",
          "difference_high", "difference_is", "p", "p_holm")  # fmt: skip


def score_rows(size: str, scores: Scores, baseline: str) -> list[Row]:
    """Rows of scores of single images: means over images, intervals over prompts.

    Args:
        size: name of the size.
        scores: those of each image.
        baseline: the policy that others are compared with.
    """
    metrics = list(dict.fromkeys(name for images in scores.values() for found in images.values() for name in found))
    rows = []
    for metric in metrics:
        of = {
            policy: {key: found[metric] for key, found in images.items() if metric in found}
            for policy, images in scores.items()
        }
        for policy, values in of.items():
            value, change, p = mean_over_prompts(values, metric in YES_OR_NO), None, None
            if policy != baseline:
                pairs = {key: (values[key], of[baseline][key]) for key in values if key in of[baseline]}
                change = _difference(pairs, metric)
                if metric in YES_OR_NO:
                    p = mcnemar([off > 0.5 for _, off in pairs.values()], [on > 0.5 for on, _ in pairs.values()])
            rows.append(row(size, policy, metric, len(values), value, change, p))
    return rows


def _difference(pairs: Mapping[tuple[int, int], tuple[float, float]], metric: str) -> Interval:
    """Of shares, where every prompt has one image, with Newcombe's interval, as their values have Wilson's."""
    if metric in YES_OR_NO and len({prompt for prompt, _ in pairs}) == len(pairs):
        on, off = zip(*pairs.values(), strict=True)
        return proportion_difference(on, off)
    return mean_over_prompts({key: on - off for key, (on, off) in pairs.items()}, is_share=False)


def distance_rows(
    size: str,
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    prompts: Sequence[int],
    baseline: str,
) -> tuple[list[Row], list[str]]:
    """Rows of distances to real images, and notes on what is not there and why.

    Args:
        size: name of the size.
        real: features of the real images.
        generated: features of each policy; row i has the same prompt and noise in each.
        prompts: index of the prompt of each row.
        baseline: the policy that others are compared with.
    """
    notes, rows = [], []
    count = len(prompts)
    fewest = min(len(real), count)
    if fewest < distances.FEWEST_FID:
        notes.append(
            f"FID is not given: with {fewest} images it would be mostly bias, which from {distances.FEWEST_FID} on is "
            "small enough to compare equal numbers of images; KID has no bias and is given with an interval"
        )
    if len(set(prompts)) >= 3:
        for policy, (value, change) in distances.kid(real, generated, prompts, baseline).items():
            rows.append(row(size, policy, "KID", count, value, change))
    else:
        notes.append(f"KID is not given: its interval needs three prompts, and there are {len(set(prompts))}")
    if fewest <= distances.NEAREST:
        notes.append(f"precision and recall are not given: they need more than {distances.NEAREST} images")
    base: dict[str, float] = {}
    for policy in (baseline, *(name for name in generated if name != baseline)):
        found = {}
        if fewest >= distances.FEWEST_FID:
            found["FID"] = distances.fid(real, generated[policy])
        if fewest > distances.NEAREST:
            found |= distances.precision_recall(real, generated[policy])
        for metric, number in found.items():
            change = None if policy == baseline else _alone(number - base[metric])
            rows.append(row(size, policy, metric, count, _alone(number), change))
        base = base or found
    return rows, notes


def _alone(value: float) -> Interval:
    """A value without an interval."""
    return Interval(value, np.nan, np.nan)


def loss_rows(size: str, losses: Mapping[str, np.ndarray], steps: Sequence[int], baseline: str) -> list[Row]:
    """Rows of the denoising loss; the difference is the change relative to the default scale.

    Args:
        size: name of the size.
        losses: (steps, scenes) of each policy.
        steps: timesteps of 1000.
        baseline: the policy that others are compared with.
    """
    rows = []
    for index, step in enumerate(steps):
        for policy, found in losses.items():
            values = list(found[index])
            change = None if policy == baseline else relative_change(values, list(losses[baseline][index]))
            value = interval([[float(each)] for each in values])
            rows.append(row(size, policy, f"loss t={step}", len(values), value, change, relative=True))
    return rows


def row(
    size: str,
    policy: str,
    metric: str,
    images: int,
    value: Interval,
    change: Interval | None = None,
    p: float | None = None,
    relative: bool = False,
) -> Row:
    """A row of scale.csv; `relative`: the change is relative to the value of the default scale."""
    against = change or Interval(np.nan, np.nan, np.nan)
    kind = None if change is None else "relative" if relative else "absolute"
    given = (size, policy, metric, images, *value, *against, kind, p, None)
    return dict(zip(FIELDS, given, strict=True))


def with_holm(rows: Sequence[Row]) -> list[Row]:
    """The rows with `p_holm`: all tests of one metric are one family."""
    found = [dict(each) for each in rows]
    for metric in dict.fromkeys(each["metric"] for each in found):
        tested = [each for each in found if each["metric"] == metric and each["p"] is not None]
        for each, adjusted in zip(tested, holm([each["p"] for each in tested]), strict=True):
            each["p_holm"] = adjusted
    return found
