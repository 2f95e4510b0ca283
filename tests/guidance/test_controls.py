"""The random direction: as long as the gradient, at the same steps, and nothing else of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from entropy_attn.guidance import TSAM, AttendAndExcite, Custom, Prompt, RandomDirection
from entropy_attn.guidance.descent import Descent


def prompt(text: str) -> Prompt:
    return Prompt(SimpleNamespace(prompt=text), (1, 2))


def test_its_length_is_that_of_the_gradient_of_each_image():
    gradient = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    gradient[1] *= 1000.0
    gradient[2] = 0.0
    prompts = [prompt("a"), prompt("b"), prompt("c")]
    found = RandomDirection(guidance=TSAM()).direction(gradient, prompts, 0)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), gradient.flatten(1).norm(dim=1))
    cosines = torch.nn.functional.cosine_similarity(found[:2].flatten(1), gradient[:2].flatten(1))
    assert cosines.abs().max() < 0.15  # of 1024 dimensions: a standard deviation of 0.03


def test_directions_depend_on_seed_prompt_index_and_number():
    gradient = torch.ones(2, 1, 2, 2)
    control = RandomDirection(guidance=TSAM(), seed=3)
    first = control.direction(gradient, [prompt("a"), prompt("a")], 0)
    assert torch.equal(first, control.direction(gradient, [prompt("a"), prompt("a")], 0))
    others = [
        control.direction(gradient, [prompt("a"), prompt("a")], 1),
        control.direction(gradient, [prompt("b"), prompt("b")], 0),
        RandomDirection(guidance=TSAM(), seed=4).direction(gradient, [prompt("a"), prompt("a")], 0),
    ]
    assert not any(torch.allclose(first, other) for other in others) and not torch.allclose(first[0], first[1])


def test_it_takes_every_setting_of_the_guidance():
    guidance = TSAM(alpha=3.0, steps=(1, 2), step_range=(0.5, 0.25), refine_at=(1,), refine_iters=7, map_size=(4, 8))
    control = RandomDirection(guidance=guidance)
    for name in ("alpha", "steps", "step_range", "refine_at", "refine_iters", "map_size", "needs_text_attention"):
        assert getattr(control, name) == getattr(guidance, name)
    waiting = AttendAndExcite(tokens=(1,), thresholds={0: 0.5})
    control = RandomDirection(guidance=waiting)
    assert control.waits and control.is_reached(0.4, 0) and not control.is_reached(0.6, 0)
    with pytest.raises(TypeError, match="guidance: expected a Guidance, such as TSAM"):
        RandomDirection(guidance=len)
    with pytest.raises(ValueError, match="seed: expected an integer >= 0, got -1"):
        RandomDirection(guidance=waiting, seed=-1)
    with pytest.raises(TypeError, match="alpha"):
        RandomDirection(guidance=waiting, alpha=1.0)


def test_a_descent_moves_as_far_in_another_direction():
    """One step of length 2 on the loss (sum of squares) / 2, whose gradient is the latents."""
    latents = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 1.0]]]])
    guidance = Custom(function=lambda maps, prompt: maps.square().sum() / 2, alpha=2.0)
    moved = []
    for each in (guidance, RandomDirection(guidance=guidance)):
        descent = Descent(each, [prompt("a"), prompt("b")])
        after = descent.step(latents, 0, 2.0, lambda wide: wide.permute(0, 2, 3, 1))
        moved.append(after - latents)
    torch.testing.assert_close(moved[0], -2.0 * latents)
    torch.testing.assert_close(moved[1].flatten(1).norm(dim=1), torch.tensor([10.0, 2.0]))
    assert not torch.allclose(moved[0], moved[1])
