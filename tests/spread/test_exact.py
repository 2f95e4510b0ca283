"""Every mode of context parallelism on four processes records and computes what one device would."""

from __future__ import annotations

import pytest

from tests.spread.launch import results_of

pytestmark = pytest.mark.spread

MODES = ("ulysses", "ring", "ring and ulysses", "ulysses anything", "ring anything")
CASES = [
    *(mode + options for options in ("", ", rows of the image", ", a scale per head") for mode in MODES),
    *("ulysses, a scale per sample", "ring, a scale per sample"),
    *("ulysses anything, 81 + 7 tokens", "ring anything, 81 + 7 tokens", "ulysses anything, 7 heads", "ring, 7 heads"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of("run_exact", 4, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("case", CASES)
def test_as_on_one_device(found, case):
    numbers = found[case]
    assert not numbers["different"], "policies or recorders were told other layers, token counts or scales"
    assert numbers["out"] <= 1e-14
    assert max(numbers["entropy"], numbers["spatial"]) <= 1e-14
    assert max(numbers["map"], numbers["maps"]) <= 1e-14
    assert numbers["response"] <= 1e-12  # a difference of two entropies, divided by 0.04


def test_a_ring_that_rounds_its_output_does_not_round_the_statistics(found):
    numbers = found["ring, default"]
    assert 1e-9 < numbers["out"] <= 1e-6, "diffusers no longer rounds to float32 by default"
    assert not numbers["different"]


@pytest.mark.parametrize("mode", ["ulysses", "ring"])
def test_bfloat16_is_no_worse_than_on_one_device(found, mode):
    numbers, one = found[f"{mode}, bfloat16"], found["one device, bfloat16"]
    assert not numbers["different"]
    for name in ("out", "entropy", "spatial", "map"):
        assert 0 < numbers[name] <= 2 * one[name], name
