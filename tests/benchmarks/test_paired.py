"""Intervals of the evaluation of the second embedded model, against published numbers, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.shapes.transformer.paired import (
    best_policy,
    mean_interval,
    share_difference_interval,
    share_interval,
    summary,
)


def pairs(both: int, only: int, other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    hits = [1] * (both + only) + [0] * (other + neither)
    off = [1] * both + [0] * only + [1] * other + [0] * neither
    return np.array(hits, float), np.array(off, float)


def test_newcombes_example():
    """Method 10 for 36, 12, 2, 0 of 50 pairs."""
    assert share_difference_interval(*pairs(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_the_sign_is_that_of_the_difference():
    low, high = share_difference_interval(*pairs(36, 2, 12, 0))
    assert (-high, -low) == pytest.approx(share_difference_interval(*pairs(36, 12, 2, 0)))


@pytest.mark.parametrize("counts", [(0, 0, 0, 40), (40, 0, 0, 0), (20, 0, 0, 20), (0, 40, 0, 0), (0, 20, 20, 0)])
def test_the_interval_of_a_difference_is_never_a_point(counts):
    hits, off = pairs(*counts)
    low, high = share_difference_interval(hits, off)
    assert -1 <= low <= hits.mean() - off.mean() <= high <= 1 and high - low > 0.01


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Correlated answers of 300 images, 95 % intervals; and the mean of count errors."""
    rng, inside, means = np.random.default_rng(0), 0, 0
    tries = 500
    for _ in range(tries):
        drawn = rng.multinomial(300, (0.15, 0.25, 0.05, 0.55))
        low, high = share_difference_interval(*pairs(*drawn))
        inside += low <= 0.2 <= high
        low, high = mean_interval(rng.poisson(0.9, 300) - rng.poisson(1.1, 300).astype(float))
        means += low <= -0.2 <= high
    # three standard errors of a share of 0.95 in 500 tries are 0.03; Newcombe's interval is a little wide
    assert 0.92 <= inside / tries <= 0.99 and 0.92 <= means / tries <= 0.98


def test_the_other_intervals():
    numbers = np.array([0.0, 1.0, 1.0, 2.0, 5.0])
    expected = stats.t.interval(0.95, 4, loc=1.8, scale=numbers.std(ddof=1) / math.sqrt(5))
    assert mean_interval(numbers) == pytest.approx(expected)
    assert mean_interval(np.full(9, 2.0)) == (2.0, 2.0)
    assert all(map(math.isnan, mean_interval(np.array([1.0]))))
    # Wilson, 1927: (p + z^2 / 2n -+ z sqrt(p q / n + z^2 / 4 n^2)) / (1 + z^2 / n), for 8 of 10
    z, n, p = 1.959964, 10, 0.8
    middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)
    assert share_interval(np.array([1.0] * 8 + [0.0] * 2)) == pytest.approx(expected, abs=1e-6)


def row(caption: str, asked: int, found: int, presence: int) -> dict:
    return {"caption": caption, "seed": "0", "asked": asked, "found": found, "presence": presence,
            "count": int(asked == found)}  # fmt: skip


def test_summary_by_hand():
    off = [row("a", 2, 0, 0), row("b", 1, 1, 1), row("c", 3, 4, 0)]
    on = [row("a", 2, 2, 1), row("b", 1, 2, 1), row("c", 3, 3, 1)]
    rows = {(r["policy"], r["measure"]): r for r in summary("9x9", {"off": off, "chosen": on}, {"chosen": "LogN"})}
    assert {r["size"] for r in rows.values()} == {"9x9"} and rows["chosen", "found"]["setting"] == "LogN"
    assert rows["off", "count_error"]["mean"] == pytest.approx(1.0)  # 2, 0, 1
    error = rows["chosen", "count_error"]  # 0, 1, 0: changes -2, 1, -1
    assert error["mean"] == pytest.approx(1 / 3) and error["difference"] == pytest.approx(-2 / 3)
    assert (error["difference_low"], error["difference_high"]) == pytest.approx(mean_interval(np.array([-2.0, 1, -1])))
    presence = rows["chosen", "presence"]
    assert presence["difference"] == pytest.approx(2 / 3) and presence["mean"] == 1
    assert rows["off", "presence"]["difference"] == "" and rows["off", "presence"]["captions"] == 3
    assert rows["chosen", "count"]["difference"] == pytest.approx(1 / 3)


def test_summary_of_images_that_are_no_pairs():
    off, on = [row("a", 1, 1, 1), row("b", 1, 1, 1)], [row("b", 1, 1, 1), row("a", 1, 1, 1)]
    with pytest.raises(ValueError, match="expected the captions and seeds of 'off' for 'LogN'"):
        summary("9x9", {"off": off, "LogN": on})


def test_the_best_policy():
    bad, good = [row("a", 2, 0, 0)], [row("a", 2, 1, 0)]
    assert best_policy({"off": bad, "LogN": good}) == "LogN"
    assert best_policy({"off": good, "LogN": good}) == "off"
    assert best_policy({"off": good, "LogN": [row("a", 2, 3, 1)]}) == "LogN"
