"""Results of the two papers, compared with `ea.attention`: Jin et al., Eq. 5; Kim et al., Propositions 1 and 2."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from benchmarks.scale import theory
from tests.support.interpreter import needs_interpreter

T = theory.TRAIN_TOKENS


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_entropy_is_ln_n_minus_half_the_variance(sigma):
    """Eq. 5, and its error falls as 1/N, like the variance of a mean of exp(s)."""
    lengths = torch.tensor([16.0, 64.0, 256.0, 1024.0])
    errors = torch.stack([
        torch.stack([
            theory.gaussian_entropies(int(n), sigma, seed=seed).mean() - theory.predicted_entropy(int(n), sigma)
            for seed in range(4)
        ]).mean()
        for n in lengths
    ]).abs()  # fmt: skip
    assert errors[-1] < 0.01 and errors[0] < 0.15
    assert (errors * lengths).max() < 2 * math.exp(sigma**2)  # errors of order 1/N
    assert errors[-1] < errors[0] / 8


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_entropy_has_slope_1_in_ln_n(sigma):
    x = [math.log(n) for n in (256, 512, 1024, 2048)]
    y = [theory.gaussian_entropies(round(math.exp(v)), sigma).mean().item() for v in x]
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    assert slope == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("factor", [1 / 4, 1 / 2, 2, 4])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_paper_s_scale_keeps_entropy_closer_to_training(sigma, factor):
    seqlen = int(T * factor)
    at_training = theory.gaussian_entropies(T, sigma).mean()
    drift = theory.gaussian_entropies(seqlen, sigma).mean() - at_training
    scaled = theory.gaussian_entropies(seqlen, sigma, scale=theory.paper_scale(seqlen)).mean() - at_training
    assert scaled.abs() < drift.abs()
    if sigma <= 1:  # here Eq. 5 holds and predicts by how much
        assert scaled / drift == pytest.approx(1 - sigma**2 / (2 * math.log(T)), abs=0.02)


def test_eq_5_fails_outside_its_range_and_the_scale_still_helps():
    """At sigma = 3 and N = 256, sigma**2 is near 2 ln N: a few keys get all the attention. Entropy stays positive."""
    sigma, at_training = 3.0, theory.gaussian_entropies(T, 3.0).mean()
    assert at_training - theory.predicted_entropy(T, sigma) > 1.0
    drift = theory.gaussian_entropies(4 * T, sigma).mean() - at_training
    scaled = theory.gaussian_entropies(4 * T, sigma, scale=theory.paper_scale(4 * T)).mean() - at_training
    assert 0 < scaled < drift


def test_maps_are_as_similar_as_proposition_1_predicts():
    """The error falls with the logit of the sink: the softmax denominator becomes the same for all queries."""
    errors = []
    for sink in (0.0, 2.0, 4.0, 6.0, 8.0):
        measured, predicted = theory.map_similarity(sink, queries=1 << 15)
        errors.append((measured - predicted).abs().max().item())
    assert all(later < earlier for earlier, later in itertools.pairwise(errors)), errors
    assert errors[0] > 8 * errors[-1], errors


def test_the_error_of_proposition_1_falls_with_the_number_of_queries():
    def error(queries: int) -> float:
        pairs = [theory.map_similarity(12.0, queries=queries, seed=seed) for seed in range(6)]
        return sum((a - b).square().mean().item() for a, b in pairs) ** 0.5

    assert error(1 << 15) < error(1 << 9) / 3  # by the law of large numbers, a factor of 8


def test_a_sink_makes_outputs_similar_as_proposition_2_predicts():
    """1 - cosine is at most of the order of epsilon**2, where epsilon is the attention outside the sink."""
    points = [theory.sink_similarity(sink) for sink in (6.0, 8.0, 10.0, 12.0)]
    assert points[-1][0] < 0.005 and points[-1][1] > 0.99999
    for (wide, less), (narrow, more) in itertools.pairwise(points):
        assert narrow < wide and more > less
    epsilon, remainder = zip(*((e, 1 - c) for e, c in points), strict=True)
    order = math.log(remainder[-2] / remainder[-1]) / math.log(epsilon[-2] / epsilon[-1])
    assert order == pytest.approx(2.0, abs=0.2)


def test_the_plots_are_drawn(tmp_path):
    table = [row for row in theory.rows() if row["x"] <= 1024]
    for path in theory.draw(table, tmp_path):
        assert path.stat().st_size > 10_000


@needs_interpreter
def test_the_triton_kernels_agree():
    ours, torchs = (theory.gaussian_entropies(64, 1.0, impl=impl) for impl in ("triton", "sdpa"))
    assert (ours - torchs).abs().max() < 1e-5
    ours, torchs = (theory.map_similarity(8.0, queries=256, impl=impl)[0] for impl in ("triton", "sdpa"))
    assert (ours - torchs).abs().max() < 1e-5
    ours, torchs = (theory.sink_similarity(6.0, impl=impl) for impl in ("triton", "sdpa"))
    assert ours == pytest.approx(torchs, abs=1e-5)
