"""Entropy of each layer: against the number of tokens, against the training size, and by position in the model."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from entropy_attn.plots.layers import layer_key, layer_styles, layer_ticks
from entropy_attn.plots.style import (
    GREY,
    MAX_PANEL_WIDTH,
    folded,
    name_policies,
    new_figure,
    panels,
    plain_axis,
    policy_style,
    sizes_by_area,
    unique,
)
from entropy_attn.profiling import ProfilePlan, size_name, slopes, spread


def entropy_against_tokens(means: pd.DataFrame, model: str) -> Figure:
    """Mean entropy of each layer against its ln N: a line for each layer, a panel for each policy, the median slope.

    No line connects different layers, because layers differ in more than N.
    """
    policies, styles = unique(means, "policy"), layer_styles(unique(means, "layer"))
    figure, axes = panels(len(policies), title=f"Attention entropy against token count, layer by layer, {model}")
    low, high = means["ln_tokens"].min(), means["ln_tokens"].max()
    ends = np.array([low, high]) + np.array([-0.05, 0.05]) * max(high - low, 1.0)
    lines = slopes(means)
    for policy, axis in zip(policies, axes, strict=True):
        axis.plot(ends, ends, linestyle=":", color=GREY, linewidth=1.2, label="uniform: ln N")
        for layer, (color, marker) in styles.items():
            points = means[(means["policy"] == policy) & (means["layer"] == layer)].sort_values("ln_tokens")
            axis.plot(points["ln_tokens"], points["entropy"], color=color, marker=marker, markersize=5, linewidth=1.2)
        axis.plot([], [], linestyle="", label=slope_text(lines[lines["policy"] == policy]["slope"]))
        axis.set_title(f"scale: {folded(policy, 40)}")
        axis.set_xlabel("ln N   (N = tokens attended)")
        axis.legend(loc="upper left", fontsize=9)
    axes[0].set_ylim(bottom=0)  # after all panels are drawn: they share it, and setting it ends autoscaling
    axes[0].set_ylabel("mean entropy [nats]")
    layer_key(figure, axes, styles)
    return figure


def slope_text(values: pd.Series) -> str:
    found = spread(values)
    if found["median"] is None:
        return "no slope: each layer has one token count"
    return (
        f"slope of a layer: median {found['median']:.2f},\n"
        f"half of them {found['lower_quartile']:.2f} to {found['upper_quartile']:.2f}"
    )


def change_from_training(table: pd.DataFrame, plan: ProfilePlan, model: str) -> Figure | None:
    """Change of each layer's entropy from the training size: a dot for each layer, a bar at the median.

    Args:
        table: what `profiling.changes` returns.
        plan: the plan of the profile.
        model: name of the model, for the title.

    Returns:
        The figure, or None if nothing could be compared.
    """
    table = table.dropna(subset="change")
    if table.empty:
        return None
    sizes, policies = sizes_by_area(table), unique(table, "policy")
    figure = new_figure(max(6.5, 1.1 + 0.5 * len(sizes) * (len(policies) + 1)) + 1.6, 4.6,
                        f"Change of each layer's entropy from the training size, {model}")  # fmt: skip
    axis = figure.subplots()
    plain_axis(axis)
    axis.axhline(0, color="black", linewidth=0.8)
    step = 0.8 / len(policies)
    for index, policy in enumerate(policies):
        style = policy_style(index)
        for at, size in enumerate(sizes):
            values = table[(table["policy"] == policy) & (table["size"] == size)]["change"].to_numpy()
            if not len(values):
                continue
            middle = at + (index - (len(policies) - 1) / 2) * step
            across = np.linspace(-0.3, 0.3, len(values)) * step if len(values) > 1 else np.zeros(1)
            axis.scatter(middle + across, values, s=16, alpha=0.6, linewidths=0, **style,
                         label=policy if at == 0 else None)  # fmt: skip
            axis.hlines(
                np.median(values), middle - 0.4 * step, middle + 0.4 * step, color=style["color"], linewidth=2.5
            )
    training = None if plan.reference is None else size_name(plan.reference)
    names = [f"{size}\n(training)" if size == training else size for size in sizes]
    axis.set_xticks(np.arange(len(sizes)), names)
    axis.set_xlabel("size [px]")
    baseline = "default scale" if plan.baseline is not None else "same scale"
    axis.set_ylabel(f"entropy minus that at the training\nsize under the {baseline} [nats]")
    name_policies(figure, axis, "scale (bar: median)")
    return figure


def entropy_per_layer(means: pd.DataFrame, model: str, reference: tuple[int, int] | None = None) -> Figure:
    """Entropy of each layer at the smallest and largest size: a line for each policy, its change from the first below.

    If `reference`, the training size, was run too, its entropies under the first policy are a dotted line.
    """
    sizes = sizes_by_area(means)
    shown = sizes if len(sizes) == 1 else [sizes[0], sizes[-1]]
    middle = None if reference is None else size_name(reference)
    if middle not in sizes or middle in shown:
        middle = None
    policies, layers = unique(means, "policy"), unique(means, "layer")
    first, others = policies[0], policies[1:]
    width = min(max(4.6, 0.32 * len(layers) + 1.5), MAX_PANEL_WIDTH)
    rows = 2 if others else 1
    figure = new_figure(width * len(shown) + 1.6, 5.8 if others else 4.2, f"Attention entropy by layer, {model}")
    grid = figure.subplots(
        rows, len(shown), squeeze=False, sharex="col", sharey="row", height_ratios=(2, 1) if others else None
    )
    for axis in grid.ravel():
        plain_axis(axis)
    positions = np.arange(len(layers))
    for column, size in enumerate(shown):
        axis = grid[0][column]
        if middle is not None:
            values = _by_layer(means, first, middle, layers)
            axis.plot(positions, values, color=GREY, linestyle=":", linewidth=1.4, label=f"{first}, {middle} px")
        base = _by_layer(means, first, size, layers)
        for index, policy in enumerate(policies):
            style = policy_style(index)
            values = _by_layer(means, policy, size, layers)
            axis.plot(positions, values, label=policy, **style)
            if policy != first:
                bar = 0.8 / len(others)
                offset = (index - 1 - (len(others) - 1) / 2) * bar
                grid[1][column].bar(positions + offset, values - base, width=bar, color=style["color"])
        axis.set_title(f"{size} px")
        axis.tick_params(labelbottom=not others)
        layer_ticks(grid[-1][column], layers)
        grid[-1][column].set_xlabel("layer, in the order of the forward pass")
    grid[0][0].set_ylim(bottom=0)
    grid[0][0].set_ylabel("mean entropy [nats]")
    if others:
        grid[1][0].set_ylabel(f"change from\n{folded(first)} [nats]")
        for axis in grid[1]:
            axis.axhline(0, color="black", linewidth=0.8)
    name_policies(figure, grid[0][0])
    return figure


def _by_layer(means: pd.DataFrame, policy: str, size: str, layers: list[str]) -> np.ndarray:
    rows = means[(means["policy"] == policy) & (means["size"] == size)]
    return rows.set_index("layer")["entropy"].reindex(layers).to_numpy()
