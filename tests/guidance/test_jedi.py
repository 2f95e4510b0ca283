"""JEDI's loss against a float64 writing of its formula, and its update."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from entropy_attn.guidance import JEDI, RandomDirection
from entropy_attn.guidance.descent import Descent
from tests.guidance.test_compared import maps, prompt


def oracle(values: np.ndarray, groups: list[list[int]], diversity: float) -> float:
    """In probabilities and logarithms alone; values (h, w, s)."""

    def shares(position: int) -> list[float]:
        flat = [float(x) for x in values[..., position].ravel()]
        return [x / math.fsum(flat) for x in flat]

    def entropy(p: list[float]) -> float:
        return -math.fsum(x * math.log(x) for x in p if x > 0)

    def mean(each: list[list[float]]) -> list[float]:
        return [math.fsum(x) / len(x) for x in zip(*each, strict=True)]

    def divergence(each: list[list[float]]) -> float:  # as the difference of entropies
        if len(each) == 1:
            return 0.0
        return (entropy(mean(each)) - math.fsum(map(entropy, each)) / len(each)) / math.log(len(each))

    subjects = [[shares(position) for position in group] for group in groups]
    mixtures = [mean(each) for each in subjects]
    cells = values.shape[0] * values.shape[1]
    apart = 1.0 - divergence(mixtures) if len(mixtures) > 1 else 0.0
    even = math.fsum(1.0 - entropy(each) / math.log(cells) for each in mixtures) / len(mixtures)
    return math.fsum(map(divergence, subjects)) / len(subjects) + apart + diversity * even


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([("red", "circle"), ("blue", "square")], [[1, 2], [4, 5]]),
        ([("red", "circle", "and"), ("square",)], [[1, 2, 3], [5]]),
        ([("circle",), (4,), ("square",)], [[2], [4], [5]]),
        ([("red", "circle")], [[1, 2]]),
    ],
)
@pytest.mark.parametrize("diversity", [0.0, 0.01, 3.0])
def test_the_formula(words, chosen, diversity):
    given = maps().double().requires_grad_()
    loss = JEDI(groups=words, diversity=diversity).loss(given, prompt())
    values = given.detach().numpy()
    assert loss.item() == pytest.approx(oracle(values, chosen, diversity), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, given)
    for at in ((0, 0, 2), (3, 5, 5), (1, 2, 4), (2, 2, 6)):  # the last is of no chosen word
        moved = []
        for change in (1e-6, -1e-6):
            other = values.copy()
            other[at] += change
            moved.append(oracle(other, chosen, diversity))
        assert gradient[at].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5, abs=1e-9)


def test_the_extremes():
    """Disjoint points: coherent and apart, and as concentrated as can be; equal maps: not apart at all."""
    given = torch.zeros(2, 2, 8)
    given[0, 0, [1, 2]], given[1, 1, [4, 5]] = 0.5, 0.25
    groups = [("red", "circle"), ("blue", "square")]
    assert JEDI(groups=groups, diversity=0.5).loss(given, prompt()).item() == pytest.approx(0.5)
    assert JEDI(groups=groups, diversity=0.5).loss(torch.ones(2, 2, 8), prompt()).item() == pytest.approx(1.0)
    assert JEDI(groups=groups).loss(torch.ones(1, 1, 8), prompt()).item() == pytest.approx(1.0)


def test_gradients_are_finite_at_maps_of_zeros():
    given = torch.zeros(3, 4, 8).requires_grad_()
    loss = JEDI(groups=[("red", "circle"), ("square",)]).loss(given, prompt())
    (gradient,) = torch.autograd.grad(loss, given)
    assert loss.isfinite() and gradient.isfinite().all()


def test_every_latent_moves_by_the_step_size():
    latents = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))

    def maps_of(z: torch.Tensor) -> torch.Tensor:
        return (z.repeat(1, 2, 1, 1) * torch.arange(1.0, 9.0)[:, None, None] / 8.0).movedim(1, -1).softmax(-1)

    guidance = JEDI(groups=[("red", "circle"), ("square",)])
    moved = Descent(guidance, [prompt()] * 2).step(latents, 0, guidance.alpha, maps_of)
    plain = Descent(JEDI(groups=guidance.groups, sign=False), [prompt()] * 2).step(latents, 0, 1e4, maps_of)
    torch.testing.assert_close(moved - latents, 3e-3 * (plain - latents).sign(), rtol=1e-3, atol=0)
    control = Descent(RandomDirection(guidance=guidance), [prompt()] * 2).step(latents, 0, guidance.alpha, maps_of)
    for length in ((moved - latents).flatten(1).norm(dim=1), (control - latents).flatten(1).norm(dim=1)):
        torch.testing.assert_close(length, torch.full((2,), 3e-3 * math.sqrt(latents[0].numel())), rtol=1e-3, atol=0)


def test_wrong_settings_are_refused():
    with pytest.raises(TypeError, match="groups"):
        JEDI(groups="red")
    with pytest.raises(ValueError, match="diversity"):
        JEDI(groups=[("red",)], diversity=-1.0)
    with pytest.raises(TypeError, match="sign"):
        JEDI(groups=[("red",)], sign="no")
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        JEDI(groups=[("dog",)]).loss(maps(), prompt())
    with pytest.raises(ValueError, match="layers"):
        JEDI(groups=[("red",)], layers="(")
    with pytest.raises(TypeError, match="layers"):
        JEDI(groups=[("red",)], layers=3)
