"""The sheet of `entropy-attn maps`: an image, and in color over it where it attends to each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from entropy_attn.plots.style import GREY, MUTED, color_bar, new_sheet
from entropy_attn.recorders import overlay as heat

MAX_COLUMNS = 9  # cells side by side, with that of the image; further ones form another band below
CELL = 1.9  # inches
MIN_IMAGE = 384  # px: small images are enlarged so that colors change smoothly
STRENGTH = 0.72


def map_sheet(
    picture: Image.Image,
    rows: Mapping[str, torch.Tensor],
    labels: Sequence[str],
    title: str,
    *,
    subtitle: str = "",
    common_scale: bool = False,
) -> Figure:
    """Draw the maps of words over an image: a column for each word, a row for each name.

    Args:
        picture: the image.
        rows: {name of the row: maps (words, h, w)}, attention probabilities from 0 to 1.
        labels: the words.
        title: above the sheet, such as the prompt.
        subtitle: below the sheet.
        common_scale: one color scale for all words, from the lowest to the highest attention. Otherwise a color scale
            for each word, the same in all rows, from 0 to the highest attention to the word, which is written below
            its maps.

    Returns:
        A matplotlib figure outside pyplot's global state.

    Raises:
        ValueError: there is no row or word, or a row does not have one map for each label.
    """
    if not rows or not labels:
        raise ValueError(f"rows, labels: expected at least one of each, got {list(rows)} and {list(labels)}")
    for name, maps in rows.items():
        if maps.dim() != 3 or len(maps) != len(labels):
            raise ValueError(f"rows[{name!r}]: expected shape ({len(labels)}, h, w), got {tuple(maps.shape)}")
    aspect = picture.height / picture.width
    bands, columns = grid_of(len(labels))
    height = (CELL * aspect + 0.05) * bands * len(rows) + 0.46 * bands
    figure = new_sheet(CELL * columns + 1.7, height, title, subtitle)
    draw_maps(figure, {name: (picture, maps) for name, maps in rows.items()}, labels, common_scale=common_scale)
    return figure


def grid_of(words: int) -> tuple[int, int]:
    """(bands, columns) for this many words and the image: as few bands as possible, all of the same length."""
    bands = -(-(words + 1) // MAX_COLUMNS)
    return bands, -(-(words + 1) // bands)


def draw_maps(
    figure: Any,
    rows: Mapping[str, tuple[Image.Image, torch.Tensor]],
    labels: Sequence[str],
    *,
    common_scale: bool = False,
) -> None:
    """Fill an empty figure, or part of one, with {row name: (image, maps (words, h, w))}, as in `map_sheet`.

    The images are the first column. An image is not repeated in the next row.
    """
    bands, columns = grid_of(len(labels))
    grid = figure.subplots(bands * len(rows), columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    lowest = min(float(maps.min()) for _, maps in rows.values())
    highest = torch.stack([maps.flatten(1).amax(1).float().cpu() for _, maps in rows.values()]).amax(0).tolist()
    limits = [(lowest, max(highest)) if common_scale else (0.0, high) for high in highest]
    one_image = len({id(image) for image, _ in rows.values()}) == 1
    shown = None
    for at, (name, (image, maps)) in enumerate(rows.items()):
        # The cells of this row in all bands, one after the other: that of the image, then one for each word.
        cells, enlarged = grid[at :: len(rows)].ravel(), _enlarged(image)
        if image is not shown:
            _show(cells[0], enlarged, "image" if at == 0 else "", grey=True)
        shown = image
        for word, (cell, label) in enumerate(zip(cells[1:], labels, strict=False)):
            values = heat.enlarge(maps[word], (enlarged.height, enlarged.width))
            laid = heat.overlay(enlarged, values, limits=limits[word], strength=STRENGTH)
            _show(cell, laid, label if at == 0 else "")
            if not common_scale and at == len(rows) - 1:
                _name_highest(cell, highest[word])
        if len(rows) > 1:
            # Beside the image where rows have different ones, else beside the first map of the row.
            _name_row(cells[1 if one_image else 0], name)
            for first in cells[columns::columns]:
                _name_row(first, name)
    lines = bands * len(rows)
    aspect = max(image.height / image.width for image, _ in rows.values())
    color_bar(
        figure,
        grid.ravel(),
        heat.color_map(),
        "attention to the word" if common_scale else "attention to the word / its highest",
        limits=limits[0] if common_scale else (0.0, 1.0),
        shrink=min(1.0, 2.2 / (lines * aspect) if lines > 1 else 0.9),
        aspect=16,
    )


def _enlarged(image: Image.Image) -> Image.Image:
    zoom = max(1, -(-MIN_IMAGE // max(image.size)))
    return image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _show(axis: Any, image: Image.Image, title: str, grey: bool = False) -> None:
    axis.imshow(np.asarray(image))
    if title:
        axis.set_title(title, fontsize=11, color=GREY if grey else "black", style="italic" if grey else "normal")


def _name_row(axis: Any, name: str) -> None:
    axis.text(-0.06, 0.5, name, transform=axis.transAxes, rotation=90, va="center", ha="right", fontsize=9.5)


def _name_highest(axis: Any, highest: float) -> None:
    text = f"highest {highest:.2g}"
    axis.text(0.5, -0.03, text, transform=axis.transAxes, va="top", ha="center", fontsize=8, color=MUTED)
