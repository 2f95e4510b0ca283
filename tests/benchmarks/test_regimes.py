"""What docs/profile.md says of the regimes, held against the committed rows and computed again."""

from __future__ import annotations

import itertools
import math

import pytest

from benchmarks.common import RESULTS, read_rows
from benchmarks.scale import regimes as script
from entropy_attn.ops.response import STEP
from entropy_attn.profiling.regimes import AVERAGING_BELOW, ONE_HOT_ABOVE

BAND, ERRORS, HELD = (read_rows(RESULTS / f"{name}.csv") for name in ("regimes", "response", "hold"))


def crossings(trained: int) -> tuple[float, float]:
    """Where the response of Gaussian logits is half of its largest value, interpolated in the committed rows."""
    rows = [
        (float(r["std_ratio"]), float(r["response_over_largest"])) for r in BAND if r["train_tokens"] == str(trained)
    ]
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(rows):
        if (y0 - 0.5) * (y1 - 0.5) < 0:
            found.append(x0 + (0.5 - y0) / (y1 - y0) * (x1 - x0))
    low, high = found
    return low, high


def test_the_band_is_where_the_response_is_half_of_its_largest():
    assert crossings(256) == (pytest.approx(AVERAGING_BELOW, abs=0.03), pytest.approx(ONE_HOT_ABOVE, abs=0.05))
    ends = {trained: crossings(trained) for trained in script.TRAIN_TOKENS}
    assert all(low == pytest.approx(AVERAGING_BELOW, abs=0.03) for low, _ in ends.values())
    highs = [high for _, high in ends.values()]
    assert highs == sorted(highs, reverse=True) and highs[0] < 2.5 and 1.3 < highs[-1] < 1.4


@pytest.mark.parametrize("ratio", [0.2, 0.7, 2.0])
def test_the_rows_are_what_is_computed(ratio):
    (row,) = [r for r in BAND if r["train_tokens"] == "64" and float(r["std_ratio"]) == ratio]
    entropy, response = script.gaussian(64, ratio * math.sqrt(2 * math.log(64)))
    assert float(row["entropy"]) == pytest.approx(entropy, rel=1e-3)
    assert float(row["response"]) == pytest.approx(response, rel=1e-3)


def test_a_small_spread_is_that_of_equation_5():
    """Response sigma**2 and drift ln(N / T): the share of theory.md, to first order in ln(N / T)."""
    (row,) = [r for r in BAND if r["train_tokens"] == "4096" and float(r["std_ratio"]) == 0.1]
    assert float(row["response"]) == pytest.approx(0.01 * 2 * math.log(4096), rel=0.01)
    assert float(row["drift"]) == pytest.approx(math.log(4), rel=0.01)


def test_the_step_between_the_scales_has_the_least_error_of_a_row():
    worst = {step: [0.0, 0.0] for step in script.STEPS}
    for row in ERRORS:
        if row["dtype"] != "float64":
            errors = worst[float(row["step"])]
            for at, name in enumerate(("error_of_mean", "error_of_row")):
                errors[at] = max(errors[at], float(row[name]))
            assert float(row["error_of_logit_std"]) < 1e-6
    assert min(worst, key=lambda step: worst[step][1]) == STEP
    assert worst[STEP][0] < 3e-4 and worst[STEP][1] < 6e-3


def test_one_step_holds_a_responsive_layer_and_the_prediction_of_logn_is_good():
    """On captions and seeds that the factors were not chosen on."""
    assert len(HELD) == 7 and [row["regime"] for row in HELD].count("responsive") == 1
    for row in HELD:
        undone, interval = float(row["hold_undone"]), float(row["hold_undone_ci"])
        logn, predicted = float(row["logn_undone"]), float(row["logn_predicted"])
        assert logn == pytest.approx(predicted, abs=0.1)
        assert undone - interval > logn  # more than LogN, in every layer
        if row["regime"] == "responsive":
            assert undone - interval > 0.9
        assert (row["hold"] == "bounded") == (row["regime"] == "averaging")


def test_the_table_of_the_page_is_the_rows():
    pytest.importorskip("diffusers")
    from benchmarks.scale.hold import PAGE, with_table

    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, HELD) == page, "run: python -m benchmarks.scale.hold --from-csv"
