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

from . import heat

MAX_COLUMNS = 8  # words side by side; more go on in a band below
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
) -> Figure:
    """Draw {row name: maps (words, h, w)} over the picture: a column a word, a row a name, one colour scale for all."""
    aspect = picture.height / picture.width
    lines, columns = _grid_of(len(labels), len(rows))
    # Outside pyplot's global state, so that a caller's own figures and settings are left alone
    width = CELL * columns + 1.7
    heading = textwrap.wrap(title, int(7.6 * width)) or [""]
    bands = lines // len(rows)
    height = (CELL * aspect + 0.05) * lines + 0.28 * bands + 0.3 * len(heading) + (0.3 if subtitle else 0.0)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    figure.suptitle("\n".join(heading), fontsize=14, fontweight="bold")
    draw_maps(figure, {name: (picture, maps) for name, maps in rows.items()}, labels)
    if subtitle:
        figure.supxlabel(textwrap.fill(subtitle, int(14 * width)), fontsize=8.5, color="#666666")
    return figure


def draw_maps(
    figure: Any,
    rows: Mapping[str, tuple[Image.Image, torch.Tensor]],
    labels: Sequence[str],
    *,
    scale_per_word: bool = False,
) -> None:
    """Fill an empty figure, or part of one, with {row name: (picture, maps (words, h, w))}.

    A picture that the row before has too is not shown again. `scale_per_word` gives every word a colour scale of its
    own, the same in all rows, from 0 to its highest attention.
    """
    lines, columns = _grid_of(len(labels), len(rows))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    low = 0.0 if scale_per_word else min(float(maps.min()) for _, maps in rows.values())
    high = 1.0 if scale_per_word else max(float(maps.max()) for _, maps in rows.values())
    for band_index, start in enumerate(range(0, len(labels), MAX_COLUMNS)):
        shown = None
        for row_index, (name, (picture, maps)) in enumerate(rows.items()):
            cells, enlarged = grid[band_index * len(rows) + row_index], _enlarged(picture)
            if picture is not shown:
                _show(cells[0], enlarged, "picture" if row_index == 0 else "", grey=True)
            # Beside the picture where each row has its own, else beside the row's first map.
            named = cells[1] if picture is shown or all(each is picture for each, _ in rows.values()) else cells[0]
            shown = picture
            for cell, place in zip(cells[1:], range(start, len(labels)), strict=False):
                values = heat.enlarge(maps[place], (enlarged.height, enlarged.width))
                highest = max(float(maps[place].max()) for _, maps in rows.values()) if scale_per_word else high
                laid = heat.overlay(enlarged, values, limits=(low, highest), strength=STRENGTH)
                _show(cell, laid, labels[place] if row_index == 0 else "")
            if len(rows) > 1:
                _name_row(named, name)
    aspect = max(picture.height / picture.width for picture, _ in rows.values())
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), ListedColormap(heat.colour_table() / 255)),
        ax=grid.ravel().tolist(),
        shrink=min(1.0, 2.2 / (lines * aspect) if lines > 1 else 0.9),
        aspect=16,
        pad=0.012,
    )
    bar.set_label("attention to the word" + ", of its highest" * scale_per_word, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _grid_of(words: int, rows: int) -> tuple[int, int]:
    """Lines and columns of cells, the picture's column included."""
    return -(-words // MAX_COLUMNS) * rows, 1 + min(words, MAX_COLUMNS)


def _enlarged(picture: Image.Image) -> Image.Image:
    zoom = max(1, -(-MIN_PICTURE // max(picture.size)))
    return picture.convert("RGB").resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _show(axis: Any, image: Image.Image, title: str, grey: bool = False) -> None:
    axis.imshow(np.asarray(image))
    if title:
        axis.set_title(title, fontsize=11, color="#888888" if grey else "black", style="italic" if grey else "normal")


def _name_row(axis: Any, name: str) -> None:
    axis.text(-0.06, 0.5, name, transform=axis.transAxes, rotation=90, va="center", ha="right", fontsize=9.5)
