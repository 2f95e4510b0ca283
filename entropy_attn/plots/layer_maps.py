"""The sheet of a `LayerMapRecorder`: a row for each layer, a column for each word or region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from entropy_attn.plots.layers import labels_of
from entropy_attn.plots.maps import MIN_IMAGE, STRENGTH
from entropy_attn.plots.style import MUTED, color_bar, new_sheet
from entropy_attn.recorders import overlay as heat

CELL = 1.9  # inches

Mark = tuple[float, ...] | None  # (x, y), (left, top, right, bottom), or nothing to mark


def layer_sheet(
    layers: Mapping[str, torch.Tensor],
    labels: Sequence[str],
    title: str,
    image: Image.Image | None = None,
    marks: Sequence[Mark] | None = None,
) -> Figure:
    """Draw the maps of layers. Each has a color scale of its own, from 0 to its highest value, written below it.

    Args:
        layers: {name of the layer: maps (words or regions, h, w)}; layers may have maps of other sizes.
        labels: the words or regions.
        title: above the figure.
        image: the image to lay them over, shown first; None draws the maps alone.
        marks: for each column a point (x, y) or a box (left, top, right, bottom) to mark, in fractions of the width and
            the height, or None.

    Returns:
        A matplotlib figure outside pyplot's global state.

    Raises:
        ValueError: there is no layer or word, or a layer does not have one map for each label.
    """
    if not layers or not labels:
        raise ValueError(f"layers, labels: expected at least one of each, got {list(layers)} and {list(labels)}")
    for name, maps in layers.items():
        if maps.dim() != 3 or len(maps) != len(labels):
            raise ValueError(f"layers[{name!r}]: expected shape ({len(labels)}, h, w), got {tuple(maps.shape)}")
    first = next(iter(layers.values()))
    aspect = first.shape[-2] / first.shape[-1] if image is None else image.height / image.width
    columns = len(labels) + (image is not None)
    figure = new_sheet(CELL * columns + 1.7, (CELL * aspect + 0.3) * len(layers) + 0.3, title)
    grid: Any = figure.subplots(len(layers), columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    enlarged = None if image is None else _enlarged(image)
    if enlarged is not None:
        _show(grid[0, 0], enlarged, aspect)
        grid[0, 0].set_title("image", fontsize=11, color=MUTED, style="italic")
    for row, name, maps in zip(grid[:, -len(labels) :], labels_of(list(layers)), layers.values(), strict=True):
        row[0].text(-0.06, 0.5, name, transform=row[0].transAxes, rotation=90, va="center", ha="right", fontsize=9)
        for at, (cell, values) in enumerate(zip(row, maps.float().cpu().nan_to_num(0.0), strict=True)):
            highest = float(values.max())
            size = (enlarged.height, enlarged.width) if enlarged is not None else None
            shown = values if size is None else heat.enlarge(values, size)
            strength = 1.0 if enlarged is None else STRENGTH
            limits = (0.0, highest or 1.0)
            _show(cell, heat.overlay(enlarged, shown, limits=limits, strength=strength), aspect)
            text = f"highest {highest:.2g}"
            cell.text(0.5, -0.03, text, transform=cell.transAxes, va="top", ha="center", fontsize=8, color=MUTED)
            _mark(cell, None if marks is None else marks[at])
    for cell, label in zip(grid[0, -len(labels) :], labels, strict=True):
        cell.set_title(label, fontsize=11)
    shrink = min(1.0, 2.2 / (len(layers) * aspect) if len(layers) > 1 else 0.9)
    color_bar(figure, grid.ravel(), heat.color_map(), "attention / the highest of the map", shrink=shrink, aspect=16)
    return figure


def _enlarged(image: Image.Image) -> Image.Image:
    zoom = max(1, -(-MIN_IMAGE // max(image.size)))
    return image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _show(axis: Any, image: Image.Image, aspect: float) -> None:
    """The image in fractions of its width and its height."""
    axis.imshow(np.asarray(image), extent=(0.0, 1.0, 1.0, 0.0), aspect=aspect, interpolation="nearest")


def _mark(axis: Any, mark: Mark) -> None:
    if mark is None:
        return
    if len(mark) == 2:
        axis.plot(*mark, "o", markersize=7, markerfacecolor="none", markeredgecolor="white", clip_on=False)
        return
    left, top, right, bottom = mark
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", clip_on=False))
