"""The denoising loss against what a sampler of diffusers makes of the same prediction, for a UNet and for Lumina 2."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn.evaluation.denoising import denoising_losses, scenes_of_training_size
from entropy_attn.shapes.checker import find_objects


@pytest.fixture(scope="module")
def shapes():
    return ea.shapes.load_pipeline()


def test_scenes_have_objects_of_the_training_size(shapes):
    sides = {}
    for side in (48, 64, 128):
        captions, images = scenes_of_training_size(shapes, (side, side), 6)
        assert images.shape == (6, side, side, 3) and len(captions) == 6
        sides[side] = np.mean([found.radius for image in images for found in find_objects(image)])
    assert sides[128] == pytest.approx(sides[64], rel=0.15) and sides[48] < 0.85 * sides[64]
    again = scenes_of_training_size(shapes, (64, 64), 3)
    assert again[0] == scenes_of_training_size(shapes, (64, 64), 6)[0][:3]


def test_loss_of_the_shapes_model_is_that_of_its_prediction(shapes, monkeypatch):
    """v-prediction: from v and the noisy latents follow clean latents, whose error is the loss by a known factor."""
    captions, images = scenes_of_training_size(shapes, (64, 64), 2)
    seen = {}
    original = type(shapes.unet).forward

    def watch(self, sample, timestep, **given):
        out = original(self, sample, timestep, **given)
        seen.update(sample=sample, prediction=out[0], timestep=timestep)
        return out

    monkeypatch.setattr(type(shapes.unet), "forward", watch)
    found = denoising_losses(shapes, {"off": None}, captions, images, steps=[700])["off"]
    assert found.shape == (1, 2)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        clean = shapes.vae.encode(pixels).latent_dist.mean * shapes.vae.config.scaling_factor
    alpha = shapes.scheduler.alphas_cumprod[700]
    # x0 = sqrt(a) x - sqrt(1-a) v, so the error of x0 is (1 - a) times that of v
    guess = alpha.sqrt() * seen["sample"] - (1 - alpha).sqrt() * seen["prediction"]
    expected = (guess - clean).square().flatten(1).mean(1) / (1 - alpha)
    assert shapes.scheduler.config.prediction_type == "v_prediction"
    assert np.allclose(found[0], expected.numpy(), rtol=1e-4)


def test_policies_are_paired_and_change_nothing_at_the_training_size(shapes):
    captions, images = scenes_of_training_size(shapes, (64, 64), 2)
    policies = {"off": None, "logn": ea.scale.LogN(), "flat": ea.scale.Constant(0.1)}
    found = denoising_losses(shapes, policies, captions, images, steps=[400])
    assert np.allclose(found["off"], found["logn"], rtol=1e-5) and (found["flat"] > found["off"]).all()
    parts = [denoising_losses(shapes, {"off": None}, captions[i : i + 1], images[i : i + 1], [400], first=i)["off"]
             for i in range(2)]  # fmt: skip
    assert np.allclose(np.concatenate(parts, axis=1), found["off"], rtol=1e-4)


def test_loss_of_a_model_of_the_noise(tiny_pipe, monkeypatch):
    """The noise follows from the noisy and the clean latents."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    seen, original = {}, type(tiny_pipe.unet).forward

    def watch(self, sample, timestep, **given):
        out = original(self, sample, timestep, **given)
        seen.update(sample=sample, prediction=out[0])
        return out

    monkeypatch.setattr(type(tiny_pipe.unet), "forward", watch)
    found = denoising_losses(tiny_pipe, {"off": None}, ["a"] * 3, images, steps=[400])["off"]
    assert tiny_pipe.scheduler.config.prediction_type == "epsilon"
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        clean = tiny_pipe.vae.encode(pixels).latent_dist.mean * tiny_pipe.vae.config.scaling_factor
    alpha = tiny_pipe.scheduler.alphas_cumprod[400]
    noise = (seen["sample"] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    assert np.allclose(found[0], (seen["prediction"] - noise).square().flatten(1).mean(1).numpy(), rtol=1e-4)
    assert abs(float(noise.std()) - 1) < 0.1


@pytest.fixture(scope="module")
def lumina():
    pipeline = pytest.importorskip("benchmarks.shapes.transformer.model")
    torch.manual_seed(0)
    return pipeline.pipeline(pipeline.vae().eval(), pipeline.transformer(width=64, layers=1).eval())


def test_a_flow_model_that_predicts_nothing_has_the_loss_of_the_velocity(lumina):
    """Its last layer starts at zero, so the loss is the mean square of image minus noise: at any timestep the same."""
    captions, images = scenes_of_training_size(lumina, (64, 64), 2)
    found = denoising_losses(lumina, {"off": None, "logn": ea.scale.LogN()}, captions, images, steps=[900, 400])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        clean = lumina.vae.encode(pixels).latent_dist.mean * lumina.vae.config.scaling_factor
    assert np.allclose(found["off"][0], found["off"][1]) and np.allclose(found["off"], found["logn"])
    assert found["off"].mean() == pytest.approx(float(clean.square().mean()) + 1.0, rel=0.25)


def test_direction_of_time_is_that_of_the_pipeline(lumina, monkeypatch):
    """At t=900 of 1000 the latents are mostly noise, and the model gets 0.1, as `Lumina2Pipeline` passes it."""
    captions, images = scenes_of_training_size(lumina, (64, 64), 1)
    seen = []
    original = type(lumina.transformer).forward

    def watch(self, hidden_states, timestep, **given):
        seen.append((hidden_states, timestep))
        return original(self, hidden_states, timestep, **given)

    monkeypatch.setattr(type(lumina.transformer), "forward", watch)
    denoising_losses(lumina, {"off": None}, captions, images, steps=[900, 100])
    (noisy, early), (clean, late) = seen
    assert float(early[0]) == pytest.approx(0.1) and float(late[0]) == pytest.approx(0.9)
    noise = (noisy - 0.1 / 0.9 * clean) / (0.9 - 0.1 * 0.1 / 0.9)  # both are mixtures of the same two
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)


def test_other_denoisers_are_refused(shapes, monkeypatch):
    from entropy_attn.evaluation import denoising

    monkeypatch.setattr(denoising, "denoiser_of", lambda pipe: torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"one of UNet2DConditionModel, Lumina2Transformer2DModel .*, got Linear"):
        denoising_losses(shapes, {"off": None}, ["a"], np.zeros((1, 64, 64, 3), dtype=np.uint8))
