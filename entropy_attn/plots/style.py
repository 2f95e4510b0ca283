"""The style that all figures share: colors, panels, sheets, color bars. Safe for color-blind readers."""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, without its yellow and black
BLUE, VERMILION, GREEN, PINK, SKY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
POLICY_COLORS = (BLUE, VERMILION, GREEN, PINK, SKY, ORANGE)
GREY, GRID, MUTED = "#8a8a8a", "#dddddd", "#666666"  # reference lines, grid lines, secondary text
MARKERS = "osD^vPX*<>"
MAX_PANELS = 3  # side by side in one row
MAX_PANEL_WIDTH = 10.0  # inches
NAME_WIDTH = 18  # characters of a row's name in a line
DPI = 150
NOTEBOOK_DPI = 80


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure outside pyplot's global state, so that the caller's figures and settings stay as they are."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    # IPython learns to show figures only when pyplot is imported. A subclass would do, but loggers know them by type.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    figure.suptitle(title, fontsize=13)
    return figure


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=NOTEBOOK_DPI)
    return data.getvalue()


def new_sheet(width: float, height: float, title: str, subtitle: str = "") -> Figure:
    """A sheet of images close together, `height` inches of them, with a wrapped title above and a subtitle below."""
    heading = textwrap.wrap(title, int(7.6 * width)) or [""]
    figure = new_figure(width, height + 0.3 * len(heading) + (0.3 if subtitle else 0.0), "")
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.03, wspace=0.02, hspace=0.02)
    figure.suptitle("\n".join(heading), fontsize=14, fontweight="bold")
    if subtitle:
        figure.supxlabel(textwrap.fill(subtitle, int(13.5 * width)), fontsize=9, color=MUTED)
    return figure


def panels(
    count: int, title: str, panel_width: float = 4.6, height: float = 4.2, share_y: bool = True
) -> tuple[Figure, list[Any]]:
    """Panels with a grid, no more than `MAX_PANELS` in a row."""
    columns = min(count, MAX_PANELS)
    rows = math.ceil(count / columns)
    figure = new_figure(panel_width * columns + 1.6, height * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y).ravel()
    for axis in grid[count:]:
        axis.remove()
    for axis in grid[:count]:
        plain_axis(axis)
    return figure, list(grid[:count])


def plain_axis(axis: Any) -> None:
    axis.grid(True, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def image_grid(rows: int, columns: int, title: str, cell: float = 2.6) -> tuple[Figure, list[list[Any]]]:
    """Axes without ticks, for images."""
    figure = new_figure(cell * columns + 2.2, cell * rows + 0.9, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, grid.tolist()


def color_bar(
    figure: Any, axes: Sequence[Any], colors: Any, label: str, *, limits: tuple[float, float] = (0.0, 1.0), **shape: Any
) -> None:
    """A bar without an outline beside `axes`; `shape` is its size, as for `Figure.colorbar`."""
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colors), ax=list(axes), pad=0.012, **shape)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def policy_style(index: int) -> dict[str, Any]:
    return {"color": POLICY_COLORS[index % len(POLICY_COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def folded(name: str, width: int = NAME_WIDTH) -> str:
    """The name of a policy in lines, wrapped before its settings, and inside them where one is too long."""
    lines = [""]
    for piece in re.split(r"(?=[:, ])", name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip(" ")
    return "\n".join(part for line in lines for part in _chopped(line, 2 * width))


def _chopped(line: str, width: int) -> list[str]:
    return [line[start : start + width] for start in range(0, len(line), width)] or [""]


def name_row(axis: Any, name: str) -> None:
    """The name of a row of images beside its first axis, horizontal so that names of low rows do not overlap."""
    axis.set_ylabel(folded(name), rotation=0, ha="right", va="center", fontsize=9)


def name_policies(figure: Figure, axis: Any, title: str = "scale") -> None:
    """A legend of the policies beside the panels, from the labels of one of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, [folded(label, 24) for label in labels], loc="outside right center", title=title)


def named_handles(axes: Iterable[Any]) -> dict[str, Any]:
    """{label: handle} for one legend of several axes, without lines that have no points."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if not isinstance(handle, Line2D) or np.size(handle.get_xdata()):
                found.setdefault(label, handle)
    return found


def unique(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, column: str) -> list[Any]:
    """The different values of a column, in the order of their first appearance."""
    values = rows[column] if isinstance(rows, pd.DataFrame) else (row[column] for row in rows)
    return list(dict.fromkeys(values))


def sizes_by_area(rows: pd.DataFrame) -> list[str]:
    sizes = rows[["size", "height", "width"]].drop_duplicates()
    return list(sizes.assign(area=sizes["height"] * sizes["width"]).sort_values(["area", "height"])["size"])
