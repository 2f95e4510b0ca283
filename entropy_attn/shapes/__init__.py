"""A tiny trained text-to-image pipeline, its world of coloured shapes, and an exact checker of its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

MODEL_DIR = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR", "load_pipeline"]


def load_pipeline(dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """The embedded pipeline: 64 x 64 pixels, 16 x 16 latents, captions of :mod:`entropy_attn.shapes.scenes`.

    It is an ordinary ``StableDiffusionPipeline``: ``from_pretrained(MODEL_DIR)`` loads the same.

    Args:
        dtype: dtype of the weights; None is float32 (they are stored in float16).

    Raises:
        ImportError: diffusers or transformers is not installed.
    """
    import torch

    try:
        from diffusers import StableDiffusionPipeline
    except ImportError as error:
        raise ImportError("the shapes pipeline needs diffusers: pip install 'entropy_attn[diffusers]'") from error
    from ..integrations.versions import dtype_argument

    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR, **dtype_argument(dtype or torch.float32))
    pipe.set_progress_bar_config(disable=True)
    return pipe
