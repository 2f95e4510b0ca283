"""MultiDiffusion around the components of a pipeline, by the panorama pipeline of diffusers."""

from __future__ import annotations

import warnings
from typing import Any

from entropy_attn.pipelines.sizes import train_size

STRIDES = 8  # views overlap by all but an eighth of their side, as in the paper and in diffusers


def multidiffusion_reason(pipe: Any, size: tuple[int, int]) -> str | None:
    """Why MultiDiffusion cannot make an image of this size with this pipeline; None if it can."""
    from diffusers import StableDiffusionPipeline

    if type(pipe) is not StableDiffusionPipeline:
        return f"diffusers has MultiDiffusion for StableDiffusionPipeline only, not for {type(pipe).__name__}"
    if any(side < trained for side, trained in zip(size, train_size(pipe), strict=True)):
        return "its views have the training size, so no side can be smaller"
    return None


def multidiffusion(pipe: Any) -> Any:
    """The same model as a panorama pipeline (Bar-Tal et al., ICML 2023).

    diffusers has views of 64 x 64 latents, which is the training size of Stable Diffusion, and 8 pixels for a latent.
    Here the views have the training size of the model, and the last ones end at the border.

    Args:
        pipe: a `StableDiffusionPipeline`.

    Raises:
        ValueError: it is another one.
    """
    from diffusers import StableDiffusionPanoramaPipeline

    reason = multidiffusion_reason(pipe, train_size(pipe))
    if reason is not None:
        raise ValueError(f"pipe: {reason}")
    factor = pipe.vae_scale_factor
    window = tuple(side // factor for side in train_size(pipe))

    class Views(StableDiffusionPanoramaPipeline):
        """With views of the model's training size."""

        def get_views(
            self, panorama_height: int, panorama_width: int, *_: Any, **__: Any
        ) -> list[tuple[int, int, int, int]]:
            rows = starts(panorama_height // factor, window[0])
            columns = starts(panorama_width // factor, window[1])
            return [(top, top + window[0], left, left + window[1]) for top in rows for left in columns]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Views(**pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def starts(side: int, window: int) -> list[int]:
    """Where views of one side begin: every eighth of a window, and the last one at the border."""
    step = max(1, window // STRIDES)
    found = list(range(0, side - window + 1, step))
    return found if found[-1] == side - window else [*found, side - window]
