"""The models whose attention calls can be told apart, and where each has its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

LATENT_CELL = 8  # pixels on a side, in every model of the table

# Class of the model's configuration in comfy/supported_models.py -> side of the images it was trained on, in pixels:
# sample_size of the published denoiser, or default_sample_size of its pipeline in diffusers, times eight.
TRAIN_PIXELS = {"SD15": 512, "SDXL": 1024, "SD3": 1024, "Flux": 1024, "FluxSchnell": 1024}


@dataclass(frozen=True)
class Family:
    """How a class of denoisers arranges its tokens.

    Attributes:
        name: the class in ComfyUI.
        patch: latent cells on a side of a token; None for a UNet, whose levels differ.
        registers: tokens that the model itself puts before the text.
    """

    name: str
    patch: int | None = None
    registers: int = 0

    def image_tokens(self, latent_size: tuple[int, int]) -> int | None:
        """Number of image tokens of a latent; None for a UNet."""
        return None if self.patch is None else math.prod(math.ceil(side / self.patch) for side in latent_size)


UNET: Literal["UNetModel"] = "UNetModel"
NAMES = {
    UNET: "Stable Diffusion 1 and 2, SDXL",
    "Flux": "Flux 1",
    "OpenAISignatureMMDITWrapper": "Stable Diffusion 3 and 3.5",
}


def family_of(model: Any) -> Family:
    """The family of a ModelPatcher's denoiser.

    Raises:
        ValueError: it is none whose calls can be told apart.
    """
    denoiser = model.model.diffusion_model
    name = type(denoiser).__name__
    if name == UNET:
        return Family(name)
    if name in NAMES:
        return Family(name, int(denoiser.patch_size), int(getattr(denoiser, "register_length", 0)))
    known = ", ".join(f"{denoiser} ({what})" for denoiser, what in NAMES.items())
    raise ValueError(
        f"model: expected a denoiser of the class {known}, got {name}: the kinds of its calls are not known"
    )


def train_pixels_of(model: Any) -> int:
    """The side of the images that a ModelPatcher's model was trained on, in pixels.

    Raises:
        ValueError: it is not in the table.
    """
    name = type(model.model.model_config).__name__
    if name not in TRAIN_PIXELS:
        known = ", ".join(f"{config} {pixels}" for config, pixels in TRAIN_PIXELS.items())
        raise ValueError(
            f"train_size: expected the side of the training images in pixels for a model of the class {name}; "
            f"0 takes it from the class, which works for {known}"
        )
    return TRAIN_PIXELS[name]
