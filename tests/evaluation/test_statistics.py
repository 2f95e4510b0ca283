"""Intervals and tests against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from entropy_attn.evaluation.statistics import (
    difference,
    holm,
    interval,
    mcnemar,
    mean,
    mean_over_prompts,
    proportion,
    proportion_difference,
    relative_change,
)


def test_an_interval_over_groups_is_that_of_the_normal_law_for_many():
    random = np.random.default_rng(1)
    values = random.normal(2.0, 3.0, 400)
    found = interval([[float(v)] for v in values], resamples=4000)
    reach = 1.96 * values.std(ddof=1) / 20
    assert math.isclose(found.mean, values.mean()) and abs(found.high - found.mean - reach) < 0.05 * reach + 0.02
    assert abs(found.mean - found.low - reach) < 0.05 * reach + 0.02


def test_values_of_a_group_are_drawn_together():
    """Ten copies of each value are no more information than one."""
    values = list(np.random.default_rng(2).normal(size=40))
    single, copied = interval([[v] for v in values]), interval([[v] * 10 for v in values])
    assert np.allclose(single, copied)


def test_difference_is_paired():
    baseline = {("a", i): 10.0 * i for i in range(50)}
    values = {key: value + 1.0 for key, value in baseline.items()} | {("a", 99): 0.0}  # the last one has no partner
    assert difference(values, baseline) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least two"):
        difference(values, baseline, group=dict.fromkeys(values, "one prompt"))


def test_relative_change_is_that_of_the_means():
    baseline = [1.0, 3.0]
    assert relative_change([1.1, 3.3], baseline) == pytest.approx((0.1, 0.1, 0.1))
    assert relative_change([2.0, 3.0], baseline).mean == pytest.approx(0.25)
    with pytest.raises(ValueError, match="at least two pairs, got 1 and 2"):
        relative_change([1.0], baseline)


def test_proportion_is_wilsons():
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    n, k, z = 40, 38, 1.959964
    p = k / n
    middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (p, (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n))
    assert proportion(k, n) == pytest.approx(expected, abs=1e-6)
    assert proportion(0, 10).low == 0.0 and 0.2 < proportion(0, 10).high < 0.3
    with pytest.raises(ValueError, match="successes: expected 0 to 3"):
        proportion(4, 3)


def pairs(both: int, only: int, other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    hits = [1] * (both + only) + [0] * (other + neither)
    off = [1] * both + [0] * only + [1] * other + [0] * neither
    return np.array(hits, float), np.array(off, float)


def test_newcombes_example():
    """Method 10 for 36, 12, 2, 0 of 50 pairs."""
    assert proportion_difference(*pairs(36, 12, 2, 0)) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_the_sign_is_that_of_the_difference():
    found, low, high = proportion_difference(*pairs(36, 2, 12, 0))
    assert (-found, -high, -low) == pytest.approx(proportion_difference(*pairs(36, 12, 2, 0)))


@pytest.mark.parametrize("counts", [(0, 0, 0, 40), (40, 0, 0, 0), (20, 0, 0, 20), (0, 40, 0, 0), (0, 20, 20, 0)])
def test_the_interval_of_a_difference_is_never_a_point(counts):
    hits, off = pairs(*counts)
    found, low, high = proportion_difference(hits, off)
    assert found == pytest.approx(hits.mean() - off.mean())
    assert -1 <= low <= hits.mean() - off.mean() <= high <= 1 and high - low > 0.01


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Correlated answers of 300 images, 95 % intervals; and the mean of count errors."""
    rng, inside, means = np.random.default_rng(0), 0, 0
    tries = 500
    for _ in range(tries):
        drawn = rng.multinomial(300, (0.15, 0.25, 0.05, 0.55))
        _, low, high = proportion_difference(*pairs(*drawn))
        inside += low <= 0.2 <= high
        _, low, high = mean(rng.poisson(0.9, 300) - rng.poisson(1.1, 300).astype(float))
        means += low <= -0.2 <= high
    # three standard errors of a share of 0.95 in 500 tries are 0.03; Newcombe's interval is a little wide
    assert 0.92 <= inside / tries <= 0.99 and 0.92 <= means / tries <= 0.98


@pytest.mark.parametrize(("hits", "off", "message"), [
    ([1, 0], [1], "hits, baseline: expected equal lengths, got 2 and 1"),
    ([], [], "hits: expected at least one value, got none"),
    ([1, 0], [1, 0.5], "baseline: expected values of 0 and 1, got 0.5"),
])  # fmt: skip
def test_what_are_no_paired_proportions(hits, off, message):
    with pytest.raises(ValueError, match=message):
        proportion_difference(hits, off)


def test_the_interval_of_a_mean_is_students():
    numbers = np.array([0.0, 1.0, 1.0, 2.0, 5.0])
    expected = stats.t.interval(0.95, 4, loc=1.8, scale=numbers.std(ddof=1) / math.sqrt(5))
    assert mean(numbers) == pytest.approx((1.8, *expected))
    assert mean(np.full(9, 2.0)) == (2.0, 2.0, 2.0)
    assert mean([1.0]).mean == 1.0 and all(map(math.isnan, mean([1.0])[1:]))
    with pytest.raises(ValueError, match="values: expected at least one"):
        mean([])


def test_a_mean_over_prompts_knows_repetitions_and_shares():
    once = {(prompt, 0): float(prompt < 6) for prompt in range(8)}
    assert mean_over_prompts(once, is_share=True) == proportion(6, 8)
    assert mean_over_prompts(once, is_share=False) == interval([[value] for value in once.values()])
    twice = once | {(prompt, 1): 1.0 for prompt in range(8)}
    by_prompt = [[once[prompt, 0], 1.0] for prompt in range(8)]
    assert mean_over_prompts(twice, is_share=True) == interval(by_prompt)
    alone = mean_over_prompts({(3, 0): 0.0, (3, 1): 1.0}, is_share=True)
    assert alone.mean == 0.5 and math.isnan(alone.low) and math.isnan(alone.high)
    with pytest.raises(ValueError, match="values: expected at least one"):
        mean_over_prompts({}, is_share=True)


def test_mcnemar_counts_what_differs():
    first, second = [1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1, 0]  # one lost, five gained
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(first, first) == 1.0
    with pytest.raises(ValueError, match="equal lengths"):
        mcnemar([1], [1, 0])


def test_holm():
    # By hand: .01·4, then max(.04, .02·3), max(.06, .03·2), max(.06, .9·1)
    assert holm([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    adjusted = holm([0.01, float("nan")])
    assert adjusted[0] == 0.01 and math.isnan(adjusted[1])
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).uniform(0, 0.2, 12)
    assert holm(list(p)) == pytest.approx(list(multitest.multipletests(p, method="holm")[1]))
