"""A map of attention made visible: enlarged to the picture, coloured, and laid over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

# Matplotlib's inferno at eleven places: even in lightness, so that it reads the same in grey and to the colour-blind.
_INFERNO = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84), (221, 81, 58),
    (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip
COLOURS = 256
MODES = ("bicubic", "bilinear", "nearest")


def colour_table() -> np.ndarray:
    """The colours from low to high, (COLOURS, 3) in 0..255."""
    places = np.linspace(0.0, 1.0, len(_INFERNO))
    wanted = np.linspace(0.0, 1.0, COLOURS)
    return np.stack([np.interp(wanted, places, channel) for channel in np.array(_INFERNO, dtype=float).T], axis=-1)


def enlarge(values: torch.Tensor, size: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """A map (..., rows, columns) at `size` = (height, width), within the bounds of its own values."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: one of {', '.join(MODES)} is needed")
    if len(size) != 2 or any(length < 1 for length in size):
        raise ValueError(f"size={size!r}: a pair (height, width) of positive ints is needed")
    options = {} if mode == "nearest" else {"align_corners": False}
    flat = values.reshape(-1, 1, *values.shape[-2:]).float()
    larger = F.interpolate(flat, size=tuple(size), mode=mode, **options)
    # Cubic interpolation swings past its points: attention would become negative.
    larger = torch.minimum(torch.maximum(larger, flat.amin((-2, -1), True)), flat.amax((-2, -1), True))
    return larger.reshape(*values.shape[:-2], *size)


def overlay(
    image: Any,
    values: torch.Tensor,
    *,
    limits: tuple[float, float] | None = None,
    strength: float = 0.65,
) -> Any:
    """A PIL picture with `values` (its height, its width) over it in colour.

    The picture loses its own colours and stays as light and dark under the map, whose colours can then be read off.
    """
    from PIL import Image

    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength={strength!r}: a number from 0 to 1 is needed")
    heat = values.detach().cpu().float().numpy()
    low, high = (float(heat.min()), float(heat.max())) if limits is None else map(float, limits)
    if not low <= high:
        raise ValueError(f"limits={limits!r}: (low, high) with low <= high is needed")
    relative = np.clip((heat - low) / max(high - low, 1e-12), 0.0, 1.0)
    colours = colour_table()[np.round(relative * (COLOURS - 1)).astype(int)]
    if strength < 1.0:
        grey = np.asarray(image.convert("L").convert("RGB"), dtype=float)
        colours = strength * colours + (1.0 - strength) * grey
    return Image.fromarray(np.round(colours).astype(np.uint8))
