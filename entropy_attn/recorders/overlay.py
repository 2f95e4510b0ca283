"""A map of attention made visible: enlarged to the image, colored, and laid over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from entropy_attn.errors import naming_the_extra

# Even in lightness, so that it reads the same in gray and to the color-blind.
COLORS = "inferno"
MODES = ("bicubic", "bilinear", "nearest")


def color_map() -> Any:
    """Matplotlib's color map of the name COLORS."""
    with naming_the_extra("colors of a map"):
        from matplotlib import colormaps
    return colormaps[COLORS]


def enlarge(values: torch.Tensor, size: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """A map (..., rows, columns) at `size` = (height, width), within the range of its values."""
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if len(size) != 2 or any(length < 1 for length in size):
        raise ValueError(f"size: expected a pair (height, width) of positive integers, got {size!r}")
    options = {} if mode == "nearest" else {"align_corners": False}
    flat = values.reshape(-1, 1, *values.shape[-2:]).float()
    larger = F.interpolate(flat, size=tuple(size), mode=mode, **options)
    # Cubic interpolation overshoots its points: attention would become negative.
    larger = torch.minimum(torch.maximum(larger, flat.amin((-2, -1), True)), flat.amax((-2, -1), True))
    return larger.reshape(*values.shape[:-2], *size)


def overlay(
    image: Any,
    values: torch.Tensor,
    *,
    limits: tuple[float, float] | None = None,
    strength: float = 0.65,
) -> Any:
    """A new PIL image with `values` (its height, its width) over it in color.

    Under the map the image is gray, so that the colors can be read off. With strength=1 it is not seen and may
    be None.
    """
    from PIL import Image

    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength: expected a number from 0 to 1, got {strength!r}")
    heat = values.detach().cpu().float().numpy()
    low, high = (float(heat.min()), float(heat.max())) if limits is None else map(float, limits)
    if not low <= high:
        raise ValueError(f"limits: expected (low, high) with low <= high, got {limits!r}")
    relative = np.clip((heat - low) / max(high - low, 1e-12), 0.0, 1.0)
    colors = 255.0 * color_map()(relative)[..., :3]
    if strength < 1.0:
        gray = np.asarray(image.convert("L").convert("RGB"), dtype=float)
        colors = strength * colors + (1.0 - strength) * gray
    return Image.fromarray(np.round(colors).astype(np.uint8))
