"""Tiny trained text-to-image pipelines of colored shapes, and an exact checker of their images."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from entropy_attn.validation import expected

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

_HERE = Path(__file__).parent
_FOLDERS = {"unet": "model", "transformer": "transformer"}


def _found(parent: Path) -> dict[str, Path]:
    """The models whose files are there; a name without weights would be one that cannot be loaded."""
    folders = {name: parent / folder for name, folder in _FOLDERS.items()}
    return {name: folder for name, folder in folders.items() if (folder / "model_index.json").is_file()}


MODELS = _found(_HERE)  # name in `load_pipeline` -> folder
MODEL_DIR = _HERE / _FOLDERS["unet"]
DEFAULT = "unet"
POSITIONS = ("interpolated", "extrapolated")

__all__ = ["DEFAULT", "MODELS", "MODEL_DIR", "POSITIONS", "load_pipeline"]


def load_pipeline(
    which: str = DEFAULT, *, dtype: torch.dtype | None = None, positions: str | None = None
) -> DiffusionPipeline:
    """Load an embedded pipeline: trained at 64 x 64 pixels, on captions of `entropy_attn.shapes.scenes`.

    Args:
        which: a name in `MODELS`: "unet" is a `StableDiffusionPipeline`, 16 x 16 latents of 4 channels;
            "transformer", where its weights are installed, a `Lumina2Pipeline`, 8 x 8 latents of 8 channels.
        dtype: floating-point dtype of the weights; None is float32 (they are stored in float16).
        positions: of the transformer's image tokens at sizes other than 64 x 64. "interpolated" (also None) keeps the
            canvas of training (`entropy_attn.shapes.positions`); "extrapolated" continues beyond it, as plain diffusers
            does, and the model repeats objects in larger images. The UNet has no positions and takes None only.

    Returns:
        The same as `diffusers.DiffusionPipeline.from_pretrained(MODELS[which])`, except for the positions.

    Raises:
        TypeError: `which` is no string, or `dtype` no dtype.
        ValueError: `which` is not in `MODELS`, `dtype` is not a floating-point dtype, or `positions` is none of these.
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
    allowed = (None, *POSITIONS) if which == "transformer" else (None,)
    if positions not in allowed:
        raise ValueError(expected("positions", f"one of {', '.join(map(repr, allowed))} for {which!r}", positions))
    with _without_advice():
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise ImportError(
                "shapes: expected diffusers to be installed: pip install 'entropy_attn[diffusers]'"
            ) from error
        from entropy_attn.integrations.diffusers.private import dtype_argument

        pipe = DiffusionPipeline.from_pretrained(MODELS[which], **dtype_argument(dtype or torch.float32))
    if which == "transformer" and positions != "extrapolated":
        from entropy_attn.shapes.positions import interpolate_positions

        interpolate_positions(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Hide transformers' advice to install torchvision for image processors, which these pipelines do not have."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
