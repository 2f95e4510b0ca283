"""What the figures share: colours, panels, names of layers and rows. Safe for colour-blind readers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, without its yellow and black
POLICY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX*<>"
GREY = "#8a8a8a"
MAX_LAYER_ENTRIES = 10  # a legend with more layers than this is unreadable
MAX_LAYER_TICKS = 30
MAX_PANELS = 3  # side by side in one row
NAME_WIDTH = 18  # characters of a row's name in a line

_UNET = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.attentions\.(\d+)(?:\.transformer_blocks\.(\d+))?(?:\.(attn\d))?$"
)
_BLOCK = re.compile(r"^(single_)?(?:transformer_)?(blocks|layers)\.(\d+)\.(.+)$")


def layer_label(layer: str) -> str:
    """A short name for a layer, in which no other one of the model is called the same.

    down_blocks.1.attentions.0.transformer_blocks.2.attn1 -> down1.0.2, its attn2 down1.0.2.attn2;
    single_transformer_blocks.7.attn -> single7.attn. Any other name is kept as it is.
    """
    if found := _UNET.search(layer):
        part, level, index, block, attention = found.groups()
        numbers = [number for number in (index, block) if number is not None]
        cross = [attention] if attention == "attn2" else []
        return ".".join([f"{part}{level or ''}", *numbers, *cross])
    if found := _BLOCK.search(layer):
        single, kind, number, rest = found.groups()
        return f"{'single' if single else kind.removesuffix('s')}{number}.{rest}"
    return layer


def labels_of(layers: Sequence[str]) -> list[str]:
    """Short names, or the whole ones where two would be the same."""
    short = [layer_label(layer) for layer in layers]
    return short if len(set(short)) == len(short) else list(layers)


def policy_style(index: int) -> dict[str, Any]:
    return {"color": POLICY_COLOURS[index % len(POLICY_COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def folded(name: str, width: int = NAME_WIDTH) -> str:
    """The name of a policy in lines, broken before its settings and within them where one is too long."""
    lines = [""]
    for piece in re.split(r"(?=[:, ])", name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip(" ")
    return "\n".join(part for line in lines for part in _chopped(line, 2 * width))


def _chopped(line: str, width: int) -> list[str]:
    return [line[start : start + width] for start in range(0, len(line), width)] or [""]


def name_row(axis: Any, name: str) -> None:
    """The name of a row of pictures, beside its first: level, so that those of low rows do not run into one another."""
    axis.set_ylabel(folded(name), rotation=0, ha="right", va="center", fontsize=9)


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure outside pyplot's global state, so that a caller's own figures and settings are left alone."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    return figure


def panels(count: int, title: str, panel_width: float = 4.6, height: float = 4.2) -> tuple[Figure, list[Any]]:
    """Panels that share their vertical axis, no more than three in a row."""
    columns = min(count, MAX_PANELS)
    rows = math.ceil(count / columns)
    figure = new_figure(panel_width * columns + 1.6, height * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis in grid[count:]:
        axis.remove()
    for axis in grid[:count]:
        plain_axis(axis)
    return figure, list(grid[:count])


def plain_axis(axis: Any) -> None:
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def picture_grid(rows: int, columns: int, title: str, cell: float = 2.6) -> tuple[Figure, list[list[Any]]]:
    figure = new_figure(cell * columns + 2.2, cell * rows + 0.9, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, grid.tolist()


def unique(values: pd.Series) -> list[Any]:
    return list(values.unique())


def sizes_by_area(rows: pd.DataFrame) -> list[str]:
    sizes = rows[["size", "height", "width"]].drop_duplicates()
    return list(sizes.assign(area=sizes["height"] * sizes["width"]).sort_values(["area", "height"])["size"])


def layer_styles(layers: Sequence[str]) -> dict[str, tuple[Any, str]]:
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(layers), 2)))
    return {layer: (shades[index], MARKERS[index % len(MARKERS)]) for index, layer in enumerate(layers)}


def layer_key(figure: Figure, axes: Sequence[Any], styles: Mapping[str, tuple[Any, str]]) -> None:
    """A legend of the layers; where there are too many to name, a colour bar of their order."""
    layers = list(styles)
    if len(layers) > MAX_LAYER_ENTRIES:
        colours = LinearSegmentedColormap.from_list("layers", [styles[layer][0] for layer in layers])
        bar = figure.colorbar(ScalarMappable(Normalize(1, len(layers)), colours), ax=axes, pad=0.02)
        bar.set_label("layer, in the order of the forward pass")
        return
    handles = [
        Line2D([], [], color=styles[layer][0], marker=styles[layer][1], label=label)
        for layer, label in zip(layers, labels_of(layers), strict=True)
    ]
    figure.legend(handles=handles, loc="outside right center", title="layer")


def layer_ticks(axis: Any, layers: Sequence[str]) -> None:
    every = math.ceil(len(layers) / MAX_LAYER_TICKS)
    axis.set_xticks(
        np.arange(0, len(layers), every), labels_of(layers)[::every], rotation=60, ha="right", rotation_mode="anchor"
    )
