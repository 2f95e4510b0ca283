"""Paired denoising loss: how well a model removes noise from known scenes at a size, under each scale policy.

No image is sampled, so a loss of hundreds of scenes costs as much as a few images; and the same scene with the same
noise under every policy makes intervals narrow. The model is asked for what it was trained to predict: noise, v, the
sample, or the velocity of a flow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_attn.evaluation.sampling import noise_seed
from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.target import denoiser_of
from entropy_attn.pipelines.sizes import train_size
from entropy_attn.shapes.scenes import place, render, to_array, training_request

Size = tuple[int, int]

STEPS = (900, 700, 400)  # of 1000: where positions, objects and edges are decided
# (noisy latents, timestep of 1000) -> (prediction, target) of each scene
Predict = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def scenes_of_training_size(pipe: Any, size: Size, count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Captions and images (count, height, width, 3) uint8; objects have the pixel size of the training images.

    In an image that is smaller than the training size they are as much smaller.
    """
    rng = random.Random(f"denoising-{seed}-{size[0]}x{size[1]}")
    unit = min(*train_size(pipe), *size)
    requests = [training_request(rng) for _ in range(count)]
    images = [to_array(render(place(request, size, rng, unit=unit), size)) for request in requests]
    return [request.caption() for request in requests], np.stack(images)


@torch.inference_mode()
def denoising_losses(
    pipe: Any,
    policies: Mapping[str, Any],
    captions: Sequence[str],
    images: np.ndarray,
    steps: Sequence[int] = STEPS,
    first: int = 0,
) -> dict[str, np.ndarray]:
    """Mean squared error of each scene, (steps, scenes) for each policy, with the same noise.

    Args:
        pipe: a pipeline of diffusers around a UNet with text, or a Lumina 2.
        policies: {name: scale policy}; None is the model's default scale.
        captions: a caption for each scene.
        images: scenes (n, height, width, 3) uint8.
        steps: timesteps of 1000, the larger the noisier.
        first: number of the first scene, which decides the noise.

    Raises:
        ValueError: the loss of this kind of pipeline is not known.
    """
    known = {"UNet2DConditionModel": _of_unet, "Lumina2Transformer2DModel": _of_lumina}
    denoiser = denoiser_of(pipe)
    if type(denoiser).__name__ not in known:
        raise ValueError(
            f"pipe: expected a pipeline whose denoiser is one of {', '.join(known)} for the denoising loss, got "
            f"{type(denoiser).__name__}"
        )
    latents = _latents(pipe, images)
    noise = torch.stack([_noise(first + index, latents.shape[1:]) for index in range(len(latents))]).to(latents)
    predict = known[type(denoiser).__name__](pipe, denoiser, list(captions))
    found = {}
    for name, policy in policies.items():
        with apply(pipe, scale=policy):
            losses = [_loss(*predict(latents, noise, step)) for step in steps]
        found[name] = torch.stack(losses).double().cpu().numpy()
    return found


def _loss(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def _noise(index: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(noise_seed(0, index)))


def _latents(pipe: Any, images: np.ndarray) -> Tensor:
    vae = pipe.vae
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1.0
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: Tensor = (vae.encode(pixels).latent_dist.mean - shift) * vae.config.scaling_factor
    return latents


def _of_unet(pipe: Any, denoiser: Any, captions: list[str]) -> Predict:
    texts = pipe.encode_prompt(captions, device=denoiser.device, num_images_per_prompt=1,
                               do_classifier_free_guidance=False)[0]  # fmt: skip
    scheduler, kind = pipe.scheduler, pipe.scheduler.config.prediction_type

    def predict(latents: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
        t = torch.full((len(latents),), step, dtype=torch.long, device=latents.device)
        noisy = scheduler.add_noise(latents, noise, t)
        target = {"epsilon": lambda: noise, "sample": lambda: latents}.get(
            kind, lambda: scheduler.get_velocity(latents, noise, t)
        )()
        return denoiser(noisy, t, encoder_hidden_states=texts, return_dict=False)[0], target

    return predict


def _of_lumina(pipe: Any, denoiser: Any, captions: list[str]) -> Predict:
    """Time runs from noise (0) to image (1), and the model predicts image minus noise."""
    texts, mask = pipe.encode_prompt(captions, do_classifier_free_guidance=False, device=denoiser.device)[:2]

    def predict(latents: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
        time = 1.0 - step / 1000
        t = torch.full((len(latents),), time, dtype=latents.dtype, device=latents.device)
        noisy = torch.lerp(noise, latents, time)
        found = denoiser(noisy, t, encoder_hidden_states=texts, encoder_attention_mask=mask, return_dict=False)[0]
        return found, latents - noise

    return predict
