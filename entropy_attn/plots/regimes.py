"""Which regime each layer is in, and what a scale can do for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from entropy_attn.plots.layers import MAX_LAYER_TICKS, labels_of
from entropy_attn.plots.style import BLUE, GREEN, GREY, MUTED, VERMILION, new_figure, plain_axis, sizes_by_area, unique
from entropy_attn.profiling.plan import ProfilePlan, size_name
from entropy_attn.profiling.regimes import AVERAGING_BELOW, MAX_FACTOR, ONE_HOT_ABOVE, verdict

COLORS = {"averaging": BLUE, "responsive": GREEN, "one-hot": VERMILION}
BAND = "#dff2ea"  # behind the responsive layers
MAX_HEIGHT = 12.0  # inches


def layer_regimes(table: pd.DataFrame, plan: ProfilePlan, model: str) -> Figure:
    """One row for each layer: logit_std / sqrt(2 ln T), the drift and what LogN undoes of it, the factor that holds.

    Shown at the size with the most tokens beside the training size; without another size, the first panel alone.

    Args:
        table: `Profile.regimes`.
        plan: the plan of the profile.
        model: name of the model, for the title.
    """
    training = None if plan.reference is None else size_name(plan.reference)
    sizes = sizes_by_area(table)
    others = [size for size in sizes if size != training]
    shown = (others or sizes)[-1]
    layers = unique(table, "layer")
    rows = table[table["size"] == shown].set_index("layer").reindex(layers)
    compared = bool(rows["logn_predicted"].notna().any())
    height = min(0.32 * len(layers) + 2.4, MAX_HEIGHT)
    figure = new_figure(12.0 if compared else 7.5, height, f"Can a scale move the entropy of {model} at {shown} px?")
    ratios = (5, 4, 3) if compared else (1,)
    axes = figure.subplots(1, len(ratios), squeeze=False, sharey=True, width_ratios=ratios)[0]
    positions = np.arange(len(layers))
    for axis in axes:
        plain_axis(axis)
    colors = [COLORS[regime] for regime in rows["regime"]]
    _ratio(axes[0], positions, rows, colors)
    if training in sizes and training != shown:
        before = table[table["size"] == training].set_index("layer").reindex(layers)
        axes[0].scatter(before["std_ratio"], positions, s=46, facecolors="none", edgecolors=MUTED, linewidths=1.0)
    if compared:
        _share(axes[1], positions, rows, colors)
        _factor(axes[2], positions, rows, colors)
    every = math.ceil(len(layers) / MAX_LAYER_TICKS)
    axes[0].set_yticks(positions[::every], labels_of(layers)[::every])
    axes[0].set_ylim(len(layers) - 0.4, -0.6)
    _key(figure, training if training in sizes and training != shown else None, rows, compared)
    figure.supxlabel(verdict(table, shown), fontsize=9, color=MUTED)
    return figure


def _ratio(axis: Any, positions: np.ndarray, rows: pd.DataFrame, colors: list[str]) -> None:
    axis.axvspan(AVERAGING_BELOW, ONE_HOT_ABOVE, color=BAND, zorder=0)
    axis.scatter(rows["std_ratio"], positions, s=46, c=colors, zorder=3)
    axis.set_xscale("log")
    low, high = rows["std_ratio"].min(), rows["std_ratio"].max()
    axis.set_xlim(min(low / 1.5, 0.1), max(high * 1.5, 10.0))
    axis.set_xlabel("sd of the logits in a row / √(2 ln T)")
    for x, text in ((0.02, "averaging"), (0.98, "one-hot")):
        axis.text(x, 1.01, text, transform=axis.transAxes, ha="left" if x < 0.5 else "right", fontsize=9, color=MUTED)
    middle = math.sqrt(AVERAGING_BELOW * ONE_HOT_ABOVE)
    axis.text(middle, 1.01, "responsive", transform=axis.get_xaxis_transform(), ha="center", fontsize=9, color=MUTED)


def _share(axis: Any, positions: np.ndarray, rows: pd.DataFrame, colors: list[str]) -> None:
    """The drift in nats as a pale bar, in it the part that LogN undoes, and that part in percent."""
    undone = rows["logn_predicted"] * rows["drift"]
    axis.barh(positions, rows["drift"], height=0.6, color=colors, alpha=0.25)
    axis.barh(positions, undone, height=0.6, color=colors)
    measured = rows["logn_measured"] * rows["drift"]
    if measured.notna().any():
        axis.scatter(measured, positions, marker="|", s=170, linewidths=2.0, color="black", zorder=3)
    axis.axvline(0, color="black", linewidth=0.8)
    for at, drift, share in zip(positions, rows["drift"], rows["logn_predicted"], strict=True):
        if not math.isnan(share):
            side = -1 if drift < 0 else 1
            axis.annotate(f"{share:.0%}", (drift, at), (4 * side, 0), textcoords="offset points", va="center",
                          ha="left" if side > 0 else "right", fontsize=8, color=MUTED)  # fmt: skip
    low, high = min(rows["drift"].min(), 0.0), max(rows["drift"].max(), 0.0)
    axis.set_xlim(low * 1.22, high * 1.22)
    axis.set_xlabel("drift of the entropy [nats];\ndark: what LogN undoes")


def _factor(axis: Any, positions: np.ndarray, rows: pd.DataFrame, colors: list[str]) -> None:
    holds = (rows["hold"] == "holds").to_numpy()
    axis.axvline(1, color=GREY, linewidth=1.0, linestyle=":")
    for at, factor, color, full in zip(positions, rows["hold_factor"], colors, holds, strict=True):
        axis.scatter(factor, at, s=46, facecolors=color if full else "none", edgecolors=color, linewidths=1.5, zorder=3)
    axis.scatter(rows["logn_factor"], positions, marker="|", s=110, linewidths=1.5, color=GREY)
    axis.set_xscale("log")
    ticks = [1 / MAX_FACTOR, 0.75, 1.0, 1.5, MAX_FACTOR]
    axis.set_xlim(ticks[0] / 1.1, ticks[-1] * 1.1)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("factor that holds the entropy")


def _key(figure: Figure, training: str | None, rows: pd.DataFrame, compared: bool) -> None:
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 7}
    handles: list[Any] = [Line2D([], [], **dot, color=color, label=name) for name, color in COLORS.items()]
    handles.append(Patch(color=BAND, label="responsive band"))
    if training is not None:
        handles.append(Line2D([], [], **dot, markerfacecolor="none", color=MUTED, label=f"at {training} px (training)"))
    if compared:
        if rows["logn_measured"].notna().any():
            handles.append(Line2D([], [], linestyle="", marker="|", markersize=12, color="black", label="measured"))
        handles.append(Line2D([], [], linestyle="", marker="|", markersize=10, color=GREY, label="factor of LogN"))
        if (rows["hold"] == "bounded").any():
            handles.append(Line2D([], [], **dot, markerfacecolor="none", color="black", label="bounded: not enough"))
    figure.legend(handles=handles, loc="outside right center", title="layer", fontsize=9)
