"""Images of prompts under several arms, with the same noise for every arm."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from entropy_attn.pipelines import attach, sample

Size = tuple[int, int]


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        name: its name in tables.
        scale: scale policy; None is the model's default scale.
        guidance: a guidance for `ea.attach`; None is none.
        seed_offset: added to every seed; other than 0 for the control "another seed".
    """

    name: str
    scale: Any = None
    guidance: Any = None
    seed_offset: int = 0


@dataclass(frozen=True)
class Settings:
    """What all images have in common.

    Attributes:
        steps: number of denoising steps.
        guidance_scale: strength of classifier-free guidance; None is the pipeline's default.
        negative_prompt: used with every prompt.
        layers: layers that get the scale, as in `ea.apply`.
        arguments: further arguments of the pipeline's call.
    """

    steps: int
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    layers: str = "self"
    arguments: Mapping[str, Any] = field(default_factory=dict)


def noise_seed(seed: int, index: int) -> int:
    """The seed of the noise of prompt `index` in repetition `seed`.

    Every prompt has different noise. It does not depend on the arm, the batch or the other prompts, so arms are paired.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")


def sample_arm(
    pipe: Any,
    prompts: Mapping[int, str],
    arm: Arm,
    *,
    size: Size,
    seed: int,
    settings: Settings,
    on_step: Callable[[], None] | None = None,
) -> dict[int, Image.Image]:
    """An image for each prompt, in one batch.

    Args:
        pipe: a diffusers pipeline.
        prompts: {index: prompt}; the index decides the noise, see `noise_seed`.
        arm: scale policy and guidance.
        size: (height, width) in pixels.
        seed: repetition, from 0.
        settings: what all images have in common.
        on_step: called after every denoising step.

    Returns:
        {index: image}
    """
    with contextlib.ExitStack() as guided:
        if arm.guidance is not None:
            guided.enter_context(attach(pipe, arm.guidance))
        images = sample(
            pipe,
            list(prompts.values()),
            size=size,
            scale=arm.scale,
            seed=[noise_seed(seed + arm.seed_offset, index) for index in prompts],
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            negative_prompt=settings.negative_prompt,
            arguments=settings.arguments,
            layers=settings.layers,
            on_step=on_step,
        )
    return dict(zip(prompts, map(as_image, images), strict=True))


def as_image(image: Any) -> Image.Image:
    """A PIL image, also of an array (H, W, 3) with values from 0 to 1."""
    if isinstance(image, Image.Image):
        return image
    values = np.asarray(image)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8).squeeze())


def image_name(index: int) -> str:
    """The file of the image of a prompt."""
    return f"{index:06d}.png"


def save_images(images: Mapping[int, Image.Image], folder: Path) -> None:
    """Write each image as a PNG file, which `load_image` reads back bit for bit."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in images.items():
        image.save(folder / image_name(index))


def load_image(folder: Path, index: int) -> Image.Image:
    """The image of a prompt."""
    with Image.open(folder / image_name(index)) as image:
        return image.convert("RGB")


def batches(indices: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive parts of at most `size`."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]
