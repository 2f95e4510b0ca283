"""Figures of one recorder: what `plot()` of a recorder returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from entropy_attn.plots.layer_maps import layer_sheet as layer_sheet
from entropy_attn.plots.layers import layer_key, layer_styles, layer_ticks
from entropy_attn.plots.maps import grid_of, map_sheet
from entropy_attn.plots.style import (
    BLUE,
    MAX_PANEL_WIDTH,
    VERMILION,
    color_bar,
    new_figure,
    new_sheet,
    plain_axis,
    unique,
)
from entropy_attn.profiling import picture_rows
from entropy_attn.recorders import overlay as heat

CELL = 1.9  # inches


def entropy_of_layers(table: pd.DataFrame) -> Figure:
    """H / ln N of each head and layer, mean over steps, and of each layer at each step.

    Args:
        table: `EntropyRecorder.to_dataframe()`, in which layers of text alone have the kind "text".

    Returns:
        A matplotlib figure outside pyplot's global state.

    Raises:
        ValueError: no image attends to anything in it, or to more than one token.
    """
    rows = picture_rows(table)
    rows = rows[rows["seqlen_k"] > 1]
    if rows.empty:
        raise ValueError("entropy: expected layers with more than one key, got none")
    rows = rows.assign(relative=rows["mean"] / np.log(rows["seqlen_k"]))
    layers = unique(rows, "layer")
    grid = rows.pivot_table(index="head", columns="layer", values="relative", aggfunc="mean").reindex(columns=layers)
    steps = rows.pivot_table(index="step", columns="layer", values="relative", aggfunc="mean").reindex(columns=layers)
    width = min(max(3.4, 0.3 * len(layers) + 1.2), MAX_PANEL_WIDTH)
    figure = new_figure(width + 6.4, max(3.8, 0.2 * len(grid) + 1.6), "Attention entropy / ln N: 0 one key, 1 uniform")
    left, right = figure.subplots(1, 2, width_ratios=(width, 4.6))
    shown = left.imshow(grid, aspect="auto", interpolation="nearest", cmap="cividis")
    left.set_title("each head, mean over steps", fontsize=10)
    left.set_ylabel("head")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    layer_ticks(left, layers)
    figure.colorbar(shown, ax=left, pad=0.02, aspect=25)
    plain_axis(right)
    styles = layer_styles(layers)
    for layer, (color, marker) in styles.items():
        right.plot(steps.index, steps[layer], color=color, marker=marker, markersize=4, linewidth=1.2)
    right.set_title("each layer, mean over heads", fontsize=10)
    right.set_xlabel("denoising step, from 0")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    layer_key(figure, [right], styles)
    return figure


def response_of_layers(summary: pd.DataFrame) -> Figure:
    """Entropy of each layer, and by how much it falls per unit of ln(scale).

    Args:
        summary: `ResponseRecorder.summary()`.

    Returns:
        A matplotlib figure outside pyplot's global state.

    Raises:
        ValueError: there is no row of self- or joint attention of the prompt's branch.
    """
    rows = picture_rows(summary)
    layers = unique(rows, "layer")
    means = rows.groupby("layer", sort=False)[["entropy", "response"]].mean().loc[layers]
    width = min(max(4.6, 0.4 * len(layers) + 1.6), MAX_PANEL_WIDTH)
    figure = new_figure(width + 1.8, 4.2, "How the entropy answers a scale")
    axis = figure.subplots()
    plain_axis(axis)
    for name, color, label in (
        ("entropy", BLUE, "entropy H"), ("response", VERMILION, "response\n-dH / d ln(scale)")
    ):  # fmt: skip
        axis.plot(np.arange(len(layers)), means[name], "o", color=color, label=label)
    layer_ticks(axis, layers)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("nats, mean over heads and steps")
    figure.legend(loc="outside right center")
    return figure


def maps_of_words(rows: Mapping[str, torch.Tensor], labels: Sequence[str], image: Image.Image | None = None) -> Figure:
    """The map of each word: a column for each word, a row for each name.

    Args:
        rows: {name of the row: maps (words, h, w)}, attention probabilities.
        labels: the words.
        image: the image to lay them over, as in `map_sheet`; None draws the maps alone.

    Returns:
        A matplotlib figure outside pyplot's global state. Each word has a color scale of its own, from 0 to the highest
        attention to it in all rows.
    """
    title = "Attention to each word"
    if image is not None:
        return map_sheet(image, rows, labels, title)
    bands, columns = grid_of(len(labels) - 1)  # no cell for an image
    first = next(iter(rows.values()))
    aspect = first.shape[-2] / first.shape[-1]
    lines = bands * len(rows)
    figure = new_sheet(CELL * columns + 1.7, (CELL * aspect + 0.4) * lines, title)
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    colors = heat.color_map()
    of_rows = [maps.flatten(1).amax(1).float().cpu() for maps in rows.values()]
    highest = torch.stack(of_rows).nan_to_num(0.0).amax(0).tolist()
    for axis in grid.ravel():
        axis.set_axis_off()
    for at, (name, maps) in enumerate(rows.items()):
        for word, (cell, label) in enumerate(zip(grid[at :: len(rows)].ravel(), labels, strict=False)):
            cell.imshow(maps[word].float().cpu().numpy(), cmap=colors, vmin=0.0, vmax=highest[word] or 1.0)
            cell.set_title(f"{label}\nhighest {highest[word]:.2g}" if at == 0 else "", fontsize=10)
            if len(rows) > 1 and word % columns == 0:
                cell.text(-0.06, 0.5, name, transform=cell.transAxes, rotation=90, va="center", ha="right", fontsize=9)
    color_bar(figure, grid.ravel(), colors, "attention / its highest", shrink=0.9, aspect=16)
    return figure
