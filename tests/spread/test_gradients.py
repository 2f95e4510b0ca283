"""Gradients under context parallelism, and why diffusers' own are not used: canaries that fail once they are right."""

from __future__ import annotations

import pytest

from tests.spread.launch import results_of

pytestmark = pytest.mark.spread

MODES = ("ulysses", "ring", "ring and ulysses", "ulysses anything, 81 + 7 tokens", "ring anything, 81 + 7 tokens")
CASES = [*(mode + statistics for mode in MODES for statistics in ("", ", statistics")), "gradient checkpointing"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results_of("run_gradients", 4, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_device(found, case):
    """Of the output and, with statistics, of entropies and maps: in the latents, every parameter and the scales."""
    assert max(found[case].values()) <= 1e-12


def test_canary_gradients_of_a_ring_in_diffusers(found):
    errors = found["gradients of a ring"]
    assert errors["query"] <= 1e-12
    assert min(errors["key"], errors["value"]) > 0.1, "diffusers has mended its ring: its backward could be used again"


def test_canary_masks_of_a_ring_in_diffusers(found):
    assert found["a mask of keys, ulysses"]["out"] <= 1e-12
    assert found["a mask of keys, ring"]["out"] > 0.1, "diffusers has mended masks in its ring: serve them"


@pytest.mark.parametrize("mode", ["ring", "ulysses"])
def test_canary_lost_gradients_in_diffusers(found, mode):
    """Those of the log-sum-exp, and so of entropies and maps, and those of a scale."""
    assert set(found[f"lost gradients, {mode}"].values()) == {0.0}
