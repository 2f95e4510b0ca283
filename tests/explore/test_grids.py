"""Maps as text, and maps made coarser: against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_attn.explore.grids import ALPHABET, LEVELS, codes, pooled


def test_the_alphabet_has_no_letter_twice_and_none_that_must_be_escaped():
    assert len(set(ALPHABET)) == LEVELS > 80 and not set(ALPHABET) & set("\"'&<>\\")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_map_is_within_half_a_level(dtype):
    values = np.random.default_rng(0).uniform(-3, 9, (7, 5)).astype(dtype)
    text, low, high = codes(values)
    shown = low + np.array([ALPHABET.index(letter) for letter in text]) / (LEVELS - 1) * (high - low)
    assert np.abs(shown.reshape(7, 5) - values).max() <= (high - low) / (LEVELS - 1) / 2 + 1e-5
    assert ALPHABET[0] in text and ALPHABET[-1] in text


def test_a_constant_map_is_its_value():
    text, low, high = codes(np.full((2, 3), 0.25))
    assert text == ALPHABET[0] * 6 and low == high == 0.25


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="values: expected finite numbers"):
        codes(np.array([[0.0, bad]]))


@pytest.mark.parametrize(("shape", "side"), [((7, 5), 4), ((8, 8), 4), ((3, 9), 64), ((1, 5), 1), ((65, 130), 64)])
def test_blocks_are_means(shape, side):
    values = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    rows, columns = -(-shape[0] // side), -(-shape[1] // side)
    expected = [
        [values[i : i + rows, j : j + columns].astype(np.float64).mean() for j in range(0, shape[1], columns)]
        for i in range(0, shape[0], rows)
    ]
    found = pooled(values, side)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert max(found.shape) <= side
