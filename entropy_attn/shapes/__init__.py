"""A tiny trained text-to-image pipeline, its world of coloured shapes, and an exact checker of its pictures."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

MODEL_DIR = Path(__file__).parent / "model"
MODELS = {"unet": MODEL_DIR}  # what `load_pipeline` knows by name, and its folder

__all__ = ["MODELS", "MODEL_DIR", "load_pipeline"]


def load_pipeline(which: str = "unet", *, dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """An embedded pipeline: 64 x 64 pixels, 16 x 16 latents, captions of :mod:`entropy_attn.shapes.scenes`.

    It is an ordinary ``StableDiffusionPipeline``: ``from_pretrained(MODEL_DIR)`` loads the same.

    Args:
        which: "unet", the only one there is.
        dtype: floating-point dtype of the weights; None is float32 (they are stored in float16).

    Raises:
        TypeError, ValueError: a name that is not in `MODELS`, or a dtype that is no floating-point one.
        ImportError: diffusers or transformers is not installed.
    """
    import torch

    if not isinstance(which, str):
        raise TypeError(
            f"which={which!r}: a name is needed, one of {', '.join(map(repr, MODELS))}; a dtype is dtype=..."
        )
    if which not in MODELS:
        raise ValueError(f"which={which!r}: one of {', '.join(map(repr, MODELS))} is needed")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r}: a torch.dtype, such as torch.float16, or None is needed")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype}: a floating-point dtype, such as torch.float16, is needed")
    with _without_advice():
        try:
            from diffusers import StableDiffusionPipeline
        except ImportError as error:
            raise ImportError("the shapes pipeline needs diffusers: pip install 'entropy_attn[diffusers]'") from error
        from entropy_attn.integrations.diffusers.private import dtype_argument

        pipe = StableDiffusionPipeline.from_pretrained(MODELS[which], **dtype_argument(dtype or torch.float32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Without transformers' line that torchvision would serve image processors, of which this pipeline has none."""

    def asked_for(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(asked_for)
    try:
        yield
    finally:
        logger.removeFilter(asked_for)
