"""Distances between the features of generated and of real images: FID, KID with intervals, precision and recall."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch

from entropy_attn.errors import naming_the_extra
from entropy_attn.evaluation.statistics import CONFIDENCE, Interval
from entropy_attn.validation import expected

FEWEST_FID = 2000  # images; with fewer, FID is mostly bias, which differs between numbers of images
RESAMPLES = 1000
NEAREST = 5  # neighbors for precision and recall, the default of prdc
CHUNK = 1024  # rows of the kernel matrix that are in memory at once


def check_installed() -> None:
    """Fail before anything is sampled, and not after.

    Raises:
        ModuleNotFoundError: torchmetrics or prdc is not installed; the message names the extra.
    """
    with naming_the_extra("real"):
        import prdc  # noqa: F401
        import torchmetrics  # noqa: F401


def fid(real: np.ndarray, generated: np.ndarray) -> float:
    """Fréchet distance of two sets of features (n, D), with torchmetrics, in float64 (Heusel et al., 2017)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        """Features instead of images."""

        num_features = real.shape[1]

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features

    metric = FrechetInceptionDistance(feature=Given())
    for features, is_real in ((real, True), (generated, False)):
        metric.update(torch.from_numpy(np.asarray(features, dtype=np.float64)), real=is_real)
    return float(metric.compute())


def precision_recall(real: np.ndarray, generated: np.ndarray, nearest: int = NEAREST) -> dict[str, float]:
    """Precision, recall, density and coverage of features (n, D), with prdc (Naeem et al., 2020)."""
    from prdc import compute_prdc

    fewest = min(len(real), len(generated))
    if fewest <= nearest:
        raise ValueError(expected("images", f"more than {nearest} of each kind for precision and recall", fewest))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of images
        found = compute_prdc(real, generated, nearest)
    return {name: float(value) for name, value in found.items()}


def kid(
    real: np.ndarray,
    arms: Mapping[str, np.ndarray],
    groups: Sequence[Hashable],
    baseline: str,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[Interval, Interval | None]]:
    """Kernel distance with 95 % intervals: unbiased, so it can be used with few images (Bińkowski et al., 2018).

    The kernel is (x·y / D + 1)³. Intervals are percentile bootstraps over groups of generated images; the real images
    are taken as given. A group is drawn as a whole, and pairs within a group are left out, because a group that is
    drawn twice would otherwise be compared with itself.

    Args:
        real: features of the real images, (n, D).
        arms: {name: features of generated images, (m, D)}; row i of every arm has the same prompt and noise.
        groups: the group of each row, such as its prompt.
        baseline: the arm that others are compared with.
        resamples: number of bootstrap samples.

    Returns:
        {name: (KID, difference to the KID of the baseline; None for the baseline)}
    """
    if len(set(groups)) < 3 or len(real) < 2:
        raise ValueError(expected("groups", "at least three, and two real images", f"{len(set(groups))}, {len(real)}"))
    ids = np.unique([str(group) for group in groups], return_inverse=True)[1]
    random, count = np.random.default_rng(0), int(ids.max()) + 1
    drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = np.concatenate([np.ones((1, len(ids))), drawn[:, ids]])  # the first row is every image once
    of_real = _within(real, np.arange(len(real)), np.ones((1, len(real))))[0]
    values = {
        name: of_real + _within(features, ids, weights) - 2 * _between(features, real, weights)
        for name, features in arms.items()
    }
    base = values[baseline]
    return {
        name: (_percentiles(found), None if name == baseline else _percentiles(found - base))
        for name, found in values.items()
    }


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values[1:], [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Interval(float(values[0]), float(low), float(high))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1.0) ** 3


def _within(features: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the kernel over pairs of different groups, for each row of weights (B, n)."""
    total, norm = np.zeros(len(weights)), np.zeros(len(weights))
    for start in range(0, len(features), CHUNK):
        rows = slice(start, start + CHUNK)
        others = (ids[rows, None] != ids[None]).astype(np.float64)
        norm += np.einsum("br,br->b", weights[:, rows], weights @ others.T)
        total += np.einsum("br,br->b", weights[:, rows], weights @ (others * _kernel(features[rows], features)).T)
    return total / norm


def _between(features: np.ndarray, real: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the kernel between generated and real images."""
    parts = range(0, len(features), CHUNK)
    means = np.concatenate([_kernel(features[start : start + CHUNK], real).mean(1) for start in parts])
    found: np.ndarray = weights @ means / weights.sum(1)
    return found
