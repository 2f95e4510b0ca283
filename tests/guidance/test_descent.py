"""Descent through a float16 model: gradients neither underflow nor overflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from entropy_attn.guidance import Guidance
from entropy_attn.guidance.descent import Descent

LATENTS = torch.tensor([[[[0.5, -1.0], [2.0, 1.0]]], [[[1.0, 3.0], [-0.5, 0.25]]]])  # (2, 1, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Sum(Guidance):
    """The sum of the maps times a number, which takes the role of the prompt."""

    def loss(self, maps: Tensor, prompt: float) -> Tensor:
        return prompt * maps.sum()

    def applies_to(self, prompt: float) -> bool:
        return True


def gradients(sizes: list[float], model: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float16) -> Tensor:
    """The gradient of `Sum` through a model that computes in `dtype`: the change of the latents in a step of size 1."""
    runs = []

    def maps_of(latents: Tensor) -> Tensor:
        runs.append(latents)
        return model(latents.to(dtype)).permute(0, 2, 3, 1).float()

    descent = Descent(Sum(), sizes)
    after = descent.step(torch.zeros_like(LATENTS, dtype=dtype), 0, 1.0, lambda zero: maps_of(zero + LATENTS))
    assert after.dtype == torch.float32 and len(descent.losses) == 1
    gradients.runs = len(runs)
    return -after


@pytest.mark.parametrize("size", [2.0**-40, 2.0**-24, 2.0**-12, 1.0, 2.0**12, 2.0**40])
def test_any_scale_of_the_loss_works(size):
    found = gradients([size] * 2, lambda z: z * z)
    torch.testing.assert_close(found, size * 2 * LATENTS, rtol=0.0, atol=0.0)
    assert gradients.runs == 1


def test_the_loss_of_another_image_does_not_matter():
    found = gradients([2.0**-30, 2.0**30], lambda z: z * z)
    torch.testing.assert_close(found[0], 2.0**-30 * 2 * LATENTS[0], rtol=0.0, atol=0.0)
    torch.testing.assert_close(found[1], 2.0**30 * 2 * LATENTS[1], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("steep", [2.0**10, 2.0**14])
def test_an_overflow_in_a_steep_model_is_retried(steep):
    """Its gradient overflows float16, while the gradient of the maps has a medium size."""
    found = gradients([1.0, 1.0], lambda z: z * steep)
    torch.testing.assert_close(found, torch.full_like(LATENTS, steep), rtol=0.0, atol=0.0)
    assert gradients.runs == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_wider_dtypes_need_no_retry(dtype):
    found = gradients([1.0, 2.0**20], lambda z: z * 2.0**14, dtype)
    torch.testing.assert_close(found[0], torch.full_like(LATENTS[0], 2.0**14), rtol=0.0, atol=0.0)
    torch.testing.assert_close(found[1], torch.full_like(LATENTS[1], 2.0**34), rtol=0.0, atol=0.0)
    assert gradients.runs == 1


def test_a_model_that_overflows_raises():
    with pytest.raises(FloatingPointError, match=r"step 0.*float16.*bfloat16 or float32"):
        gradients([1.0, 1.0], lambda z: z * 60000.0 * 60000.0)


def test_autocast_counts_as_float16():
    weight = torch.full((1, 1, 1, 1), 2.0**10)

    def maps_of(latents: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return torch.nn.functional.conv2d(latents + LATENTS, weight).permute(0, 2, 3, 1).float()

    with torch.autocast("cpu", dtype=torch.float16):
        after = Descent(Sum(), [2.0**-30, 2.0**30]).step(torch.zeros_like(LATENTS), 0, 1.0, maps_of)
    torch.testing.assert_close(-after[0], torch.full_like(LATENTS[0], 2.0**-20), rtol=0.0, atol=0.0)
    torch.testing.assert_close(-after[1], torch.full_like(LATENTS[1], 2.0**40), rtol=0.0, atol=0.0)


def test_no_loss_and_constant_maps_stay_finite():
    assert gradients([0.0, 1.0], lambda z: z * z)[0].abs().max() == 0
    assert gradients([1.0, 1.0], lambda z: z * 0.0).abs().max() == 0
    assert gradients([1.0, 1.0], lambda z: z.detach()).abs().max() == 0
