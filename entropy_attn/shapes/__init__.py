"""A tiny trained text-to-image pipeline of colored shapes, and an exact checker of its images."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from entropy_attn.validation import expected

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

MODEL_DIR = Path(__file__).parent / "model"
MODELS = {"unet": MODEL_DIR}  # name in `load_pipeline` -> folder

__all__ = ["MODELS", "MODEL_DIR", "load_pipeline"]


def load_pipeline(which: str = "unet", *, dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """Load an embedded pipeline: 64 x 64 pixels, 16 x 16 latents, captions of `entropy_attn.shapes.scenes`.

    Args:
        which: a name in `MODELS`: "unet".
        dtype: floating-point dtype of the weights; None is float32 (they are stored in float16).

    Returns:
        A diffusers `StableDiffusionPipeline`, the same as from `StableDiffusionPipeline.from_pretrained(MODEL_DIR)`.

    Raises:
        TypeError: `which` is no string, or `dtype` no dtype.
        ValueError: `which` is not in `MODELS`, or `dtype` is not a floating-point dtype.
        ImportError: diffusers or transformers is not installed.
    """
    import torch

    names = ", ".join(map(repr, MODELS))
    if not isinstance(which, str):
        raise TypeError(f"{expected('which', f'one of {names}', which)}; a dtype is dtype=...")
    if which not in MODELS:
        raise ValueError(expected("which", f"one of {names}", which))
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(expected("dtype", "None or a torch.dtype, such as torch.float16", dtype))
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(expected("dtype", "a floating-point dtype, such as torch.float16", dtype))
    with _without_advice():
        try:
            from diffusers import StableDiffusionPipeline
        except ImportError as error:
            raise ImportError(
                "shapes: expected diffusers to be installed: pip install 'entropy_attn[diffusers]'"
            ) from error
        from entropy_attn.integrations.diffusers.private import dtype_argument

        pipe = StableDiffusionPipeline.from_pretrained(MODELS[which], **dtype_argument(dtype or torch.float32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Hide transformers' advice to install torchvision for image processors, which this pipeline does not have."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
