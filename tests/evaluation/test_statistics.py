"""Intervals and tests against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from entropy_attn.evaluation.statistics import difference, holm, interval, mcnemar, proportion, relative_change


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
