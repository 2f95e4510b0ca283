"""Regions of an image, in fractions of its sides, on a grid of tokens."""

from __future__ import annotations

from typing import Any

import torch

from entropy_attn.validation import Size, expected, require_number

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the width and the height
Region = Box | torch.Tensor


def checked_region(name: str, region: Any) -> Region:
    """A box, or a mask (rows, columns) of booleans on the CPU. `name` is that of the argument, for messages."""
    what = "a box (left, top, right, bottom) in fractions from 0 to 1, or a tensor (rows, columns)"
    if isinstance(region, torch.Tensor):
        if region.dim() != 2 or not region.numel():
            raise ValueError(f"{name}: expected {what}, got a tensor of shape {tuple(region.shape)}")
        mask = (region != 0).cpu()
        if not mask.any():
            raise ValueError(f"{name}: expected {what}, got a mask without a cell that is not 0")
        return mask
    if not isinstance(region, (tuple, list)) or len(region) != 4:
        raise TypeError(expected(name, what, region))
    for edge in region:
        require_number(name, edge)
    left, top, right, bottom = region
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(expected(name, what, region))
    return left, top, right, bottom


def on_grid(region: Region, grid: Size) -> torch.Tensor:
    """The cells of the grid whose centers are in the region; at least the one nearest to a small box's center.

    A mask has no such cell where it is finer than the grid and none of its own cells is met by a center.
    """
    y, x = ((torch.arange(count) + 0.5) / count for count in grid)
    if isinstance(region, torch.Tensor):
        rows, columns = ((at * size).long() for at, size in zip((y, x), region.shape, strict=True))
        return region[rows][:, columns]
    left, top, right, bottom = region
    found = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
    if not found.any():
        found[int(grid[0] * (top + bottom) / 2), int(grid[1] * (left + right) / 2)] = True
    return found
