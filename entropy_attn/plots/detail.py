"""Entropy at one size: of each head, at each step, and over the image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from entropy_attn.plots.layers import layer_ticks
from entropy_attn.plots.style import (
    MAX_PANEL_WIDTH,
    folded,
    image_grid,
    name_policies,
    name_row,
    new_figure,
    panels,
    policy_style,
    sizes_by_area,
    unique,
)
from entropy_attn.profiling import Profile, picture_rows, size_name

MAX_MAP_LEVELS = 3


def head_heat_map(heads: pd.DataFrame, model: str) -> Figure:
    """H / ln N of each head and layer at the largest size: a row for each policy, with its change from the first."""
    rows = picture_rows(heads)
    size = sizes_by_area(rows)[-1]
    rows = rows[(rows["size"] == size) & (rows["seqlen_k"] > 1)]
    rows = rows.assign(relative=rows["mean"] / np.log(rows["seqlen_k"]))
    policies, layers = unique(rows, "policy"), unique(rows, "layer")
    grids = [
        rows[rows["policy"] == policy]
        .pivot_table(index="head", columns="layer", values="relative", aggfunc="mean")
        .reindex(columns=layers)
        for policy in policies
    ]
    first, count = grids[0], len(grids[0])
    moved = [(grid - first).to_numpy() for grid in grids[1:]]
    reach = max([1e-6, *(float(np.nanmax(np.abs(each))) for each in moved)])
    lowest, highest = min(float(g.min().min()) for g in grids), max(float(g.max().max()) for g in grids)
    width = min(max(3.4, 0.3 * len(layers) + 1.2), MAX_PANEL_WIDTH)
    columns = 2 if moved else 1
    height = max(2.4, 0.2 * count + 1.2)
    figure = new_figure(
        width * columns + 1.0, height * len(policies) + 1.6, f"Entropy of every head at {size} px, {model}"
    )
    axes = figure.subplots(len(policies), columns, squeeze=False, sharex=True, sharey=True)
    for row, (policy, grid) in enumerate(zip(policies, grids, strict=True)):
        values = axes[row][0].imshow(
            grid, aspect="auto", interpolation="nearest", cmap="cividis", vmin=lowest, vmax=highest
        )
        axes[row][0].set_title(f"scale: {folded(policy, 36)}", fontsize=10)
        axes[row][0].set_ylabel("head")
        if row:
            change = axes[row][1].imshow(
                moved[row - 1], aspect="auto", interpolation="nearest", cmap="PuOr", vmin=-reach, vmax=reach
            )
            axes[row][1].set_title(f"minus {folded(policies[0], 30)}", fontsize=10)
    for axis in axes.ravel():
        axis.set_yticks(np.arange(count) if count <= 10 else np.arange(0, count, 4))
        layer_ticks(axis, layers)
    figure.colorbar(values, ax=list(axes[:, 0]), location="bottom", label="H / ln N", pad=0.02, aspect=30)
    if moved:
        figure.colorbar(
            change, ax=list(axes[1:, 1]), location="bottom", label="change of H / ln N", pad=0.02, aspect=30
        )
        axes[0][1].set_visible(False)  # the first policy is not compared with itself
    return figure


def entropy_against_step(entropy: pd.DataFrame, model: str) -> Figure:
    """Mean over layers and heads at each denoising step, from 0: a line for each policy, a panel for each size."""
    rows = picture_rows(entropy)
    # Layers first, so that each layer counts once, whatever its number of heads
    by_layer = rows.groupby(["policy", "size", "height", "width", "step", "layer"], sort=False)["mean"].mean()
    means = by_layer.groupby(level=["policy", "size", "height", "width", "step"], sort=False).mean().reset_index()
    policies, sizes = unique(means, "policy"), sizes_by_area(means)
    figure, axes = panels(
        len(sizes), title=f"Attention entropy while denoising, mean over layers, {model}", panel_width=3.6, height=3.4
    )
    for axis, size in zip(axes, sizes, strict=True):
        for index, policy in enumerate(policies):
            line = means[(means["policy"] == policy) & (means["size"] == size)].sort_values("step")
            axis.plot(line["step"], line["mean"], markersize=4, label=policy, **policy_style(index))
        axis.set_title(f"{size} px")
        axis.set_xlabel("denoising step, from 0")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("mean entropy [nats]")
    name_policies(figure, axes[0])
    return figure


def entropy_maps(result: Profile, model: str) -> Figure:
    """The first image at the largest size, and H / ln N of each token, mean over layers of the same size."""
    size, seed = result.plan.map_size, result.plan.seeds[0]
    if result.heads is None:
        raise ValueError("result: expected a profile with `heads`, got one without")
    rows = result.heads[result.heads["size"] == size_name(size)]
    tokens = dict(zip(rows["layer"], rows["seqlen_k"], strict=True))
    levels = {policy: _levels(maps, tokens) for policy, maps in result.maps.items()}
    shapes = sorted({shape for by_shape in levels.values() for shape in by_shape}, reverse=True)[:MAX_MAP_LEVELS]
    first = 1 if result.pictures else 0  # column of the maps
    figure, grid = image_grid(
        len(levels), first + len(shapes), title=f"Attention entropy over the image, {size_name(size)} px, {model}"
    )
    for row, policy in zip(grid, levels, strict=True):
        if result.pictures:
            row[0].imshow(result.pictures[size, policy, seed][0], interpolation="nearest")
        name_row(row[0], policy)
    if first:
        grid[0][0].set_title("image")
    # A color scale for each column: levels differ more from each other than the tokens of one level
    for column, shape in enumerate(shapes, start=first):
        values = [levels[policy][shape] for policy in levels]
        low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
        for row, value in zip(grid, values, strict=True):
            shown = row[column].imshow(value, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        grid[0][column].set_title(f"layers of {shape[0]}x{shape[1]} tokens", fontsize=10)
        bar = figure.colorbar(
            shown, ax=[row[column] for row in grid], location="bottom", label="H / ln N, mean over steps",
            shrink=0.9, pad=0.02,
        )  # fmt: skip
        bar.locator = MaxNLocator(4)
    return figure


def _levels(maps: Mapping[str, np.ndarray], tokens: Mapping[str, int]) -> dict[tuple[int, int], np.ndarray]:
    """Mean of the maps of each shape, as H / ln N."""
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for layer, values in maps.items():
        if values.size > 1:
            groups.setdefault(values.shape, []).append(values / math.log(tokens[layer]))
    return {shape: np.mean(group, axis=0) for shape, group in groups.items()}
