"""The update of the latents: its direction, its length at each step, and the correction for Euler's latents."""

from __future__ import annotations

import math

import pytest
import torch

from entropy_attn.guidance import input_correction, step_size, update_latents


def test_the_update_follows_the_negative_gradient():
    latents, gradient = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.25])
    torch.testing.assert_close(update_latents(latents, gradient, 2.0), torch.tensor([0.0, 2.5]))
    assert torch.equal(update_latents(latents, gradient, 0.0), latents)
    found = update_latents(latents.half(), gradient.half(), torch.tensor(2.0))
    assert found.dtype == torch.float32
    with pytest.raises(ValueError, match="gradient"):
        update_latents(latents, gradient[:1], 1.0)


def test_the_released_schedule_is_the_root_of_an_even_one():
    expected = 40.0 * torch.linspace(1.0, 0.5, 50, dtype=torch.float64).sqrt()
    found = torch.tensor([step_size(40.0, step, 50) for step in range(50)], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert step_size(40.0, 49, 50) == pytest.approx(40.0 / math.sqrt(2)) and step_size(40.0, 0, 1) == 40.0
    assert step_size(40.0, 30, 50, (1.0, 1.0)) == 40.0
    with pytest.raises(ValueError, match=r"step: expected .*got 50"):
        step_size(40.0, 50, 50)


def test_the_scale_of_eulers_latents_is_corrected():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    latents = torch.zeros(2, 4, 8, 8)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        scheduler._step_index = None
        found = input_correction(lambda sample, t=timestep: scheduler.scale_model_input(sample, t), latents)
        torch.testing.assert_close(found, sigma**2 + 1)
    assert (scheduler.sigmas[0] ** 2 + 1) > 200  # the factor that the gradient would miss


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_others_need_no_correction(name):
    scheduler = getattr(pytest.importorskip("diffusers"), name)()
    scheduler.set_timesteps(4)
    timestep = scheduler.timesteps[1]
    assert input_correction(lambda sample: scheduler.scale_model_input(sample, timestep), torch.zeros(1)).item() == 1.0
