"""The sheet of `entropy-attn maps`: a picture, and where it attends to each word, in colour over it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from entropy_attn.recorders import overlay as heat

MAX_COLUMNS = 9  # cells side by side, the picture's included; more go on in a band below
CELL = 1.9  # inches
MIN_PICTURE = 384  # px, so that the colours run smoothly over a small picture
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
    """Draw {row name: maps (words, h, w)} over the picture: a column a word, a row a name.

    common_scale: one colour scale for all words, from the lowest attention to the highest; otherwise every word has its
        own, the same in all rows, from 0 to the highest attention to it, which stands below its maps.

    Raises:
        ValueError: no row, or one that has not a map for each of the labels.
    """
    if not rows or not labels:
        raise ValueError(f"rows={list(rows)}, labels={list(labels)}: at least one row and one word are needed")
    for name, maps in rows.items():
        if maps.dim() != 3 or len(maps) != len(labels):
            raise ValueError(f"rows[{name!r}] of shape {tuple(maps.shape)}: ({len(labels)}, h, w) is needed")
    aspect = picture.height / picture.width
    bands, columns = grid_of(len(labels))
    # Outside pyplot's global state, so that a caller's own figures and settings are left alone
    width = CELL * columns + 1.7
    heading = textwrap.wrap(title, int(7.6 * width)) or [""]
    height = (CELL * aspect + 0.05) * bands * len(rows) + 0.46 * bands + 0.3 * len(heading) + (0.3 if subtitle else 0.0)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    figure.suptitle("\n".join(heading), fontsize=14, fontweight="bold")
    draw_maps(figure, {name: (picture, maps) for name, maps in rows.items()}, labels, common_scale=common_scale)
    if subtitle:
        figure.supxlabel(textwrap.fill(subtitle, int(14 * width)), fontsize=8.5, color="#666666")
    return figure


def grid_of(words: int) -> tuple[int, int]:
    """Bands and columns for so many words and the picture: as few bands as there can be, and all of a length."""
    bands = -(-(words + 1) // MAX_COLUMNS)
    return bands, -(-(words + 1) // bands)


def draw_maps(
    figure: Any,
    rows: Mapping[str, tuple[Image.Image, torch.Tensor]],
    labels: Sequence[str],
    *,
    common_scale: bool = False,
) -> None:
    """Fill an empty figure, or part of one, with {row name: (picture, maps (words, h, w))}; see `map_sheet`.

    The pictures are the first column. One that the row before has too is not shown again.
    """
    bands, columns = grid_of(len(labels))
    grid = figure.subplots(bands * len(rows), columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    lowest = min(float(maps.min()) for _, maps in rows.values())
    highest = torch.stack([maps.flatten(1).amax(1).float().cpu() for _, maps in rows.values()]).amax(0).tolist()
    limits = [(lowest, max(highest)) if common_scale else (0.0, high) for high in highest]
    one_picture = len({id(picture) for picture, _ in rows.values()}) == 1
    shown = None
    for at, (name, (picture, maps)) in enumerate(rows.items()):
        # The cells of this row in all bands, one after the other: the picture's, then a word's each.
        cells, enlarged = grid[at :: len(rows)].ravel(), _enlarged(picture)
        if picture is not shown:
            _show(cells[0], enlarged, "picture" if at == 0 else "", grey=True)
        shown = picture
        for place, (cell, label) in enumerate(zip(cells[1:], labels, strict=False)):
            values = heat.enlarge(maps[place], (enlarged.height, enlarged.width))
            laid = heat.overlay(enlarged, values, limits=limits[place], strength=STRENGTH)
            _show(cell, laid, label if at == 0 else "")
            if not common_scale and at == len(rows) - 1:
                _name_highest(cell, highest[place])
        if len(rows) > 1:
            # Beside the picture where each row has its own, else beside the row's first map.
            _name_row(cells[1 if one_picture else 0], name)
            for first in cells[columns::columns]:
                _name_row(first, name)
    low, high = limits[0] if common_scale else (0.0, 1.0)
    lines = bands * len(rows)
    aspect = max(picture.height / picture.width for picture, _ in rows.values())
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), ListedColormap(heat.color_table() / 255)),
        ax=grid.ravel().tolist(),
        shrink=min(1.0, 2.2 / (lines * aspect) if lines > 1 else 0.9),
        aspect=16,
        pad=0.012,
    )
    bar.set_label("attention to the word" + ", of its highest" * (not common_scale), fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _enlarged(picture: Image.Image) -> Image.Image:
    zoom = max(1, -(-MIN_PICTURE // max(picture.size)))
    return picture.convert("RGB").resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _show(axis: Any, image: Image.Image, title: str, grey: bool = False) -> None:
    axis.imshow(np.asarray(image))
    if title:
        axis.set_title(title, fontsize=11, color="#888888" if grey else "black", style="italic" if grey else "normal")


def _name_row(axis: Any, name: str) -> None:
    axis.text(-0.06, 0.5, name, transform=axis.transAxes, rotation=90, va="center", ha="right", fontsize=9.5)


def _name_highest(axis: Any, highest: float) -> None:
    text = f"highest {highest:.2g}"
    axis.text(0.5, -0.03, text, transform=axis.transAxes, va="top", ha="center", fontsize=8, color="#666666")
