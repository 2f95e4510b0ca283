"""Figures of an entropy profile, from data frames to PNG files; colours are safe for colour-blind readers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from .profile import ProfileResult, fit_line, layer_means, self_attention_rows, size_name

# Okabe and Ito's palette, without its yellow and black
POLICY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX*<>"
GREY = "#8a8a8a"
MAX_LAYER_ENTRIES = 10  # a legend with more layers than this is unreadable
MAX_LAYER_TICKS = 30
MAX_PANEL_WIDTH = 10.0  # inches
MAX_MAP_LEVELS = 3
MAX_SHEET_PROMPTS = 4
MIN_COMPARE_WIDTH = 320  # px, so that captions fit below small pictures
MAX_PANELS = 3  # side by side in one row


def save_figures(result: ProfileResult, model: str, out: Path) -> dict[str, Path]:
    """Draw every figure of the profile into the folder `out`; returns {name: path}."""
    means = layer_means(result.entropy)
    figures = {
        "entropy_vs_tokens": entropy_against_tokens(means, model),
        "entropy_per_layer": entropy_per_layer(means, model, reference=result.plan.reference),
        "entropy_heads": head_heat_map(result.entropy, model),
        "entropy_vs_step": entropy_against_step(result.entropy, model),
        "entropy_map": entropy_maps(result, model),
        "pictures": contact_sheet(result, model),
    }
    paths = {}
    for name, figure in figures.items():
        paths[name] = out / f"{name}.png"
        figure.savefig(paths[name], dpi=150)
    return paths


def entropy_against_tokens(means: pd.DataFrame, model: str) -> Figure:
    """Mean entropy of every (layer, size) against ln N, a panel a policy, with the fitted line, slope and R²."""
    policies, layers = _unique(means["policy"]), _unique(means["layer"])
    figure, axes = _panels(len(policies), title=f"Self-attention entropy against token count, {model}")
    styles = _layer_styles(layers)
    low, high = means["ln_tokens"].min(), means["ln_tokens"].max()
    ends = np.array([low, high]) + np.array([-0.05, 0.05]) * max(high - low, 1.0)
    fits = {policy: _fit(means, policy) for policy in policies}
    for index, (policy, axis) in enumerate(zip(policies, axes, strict=True)):
        rows = means[means["policy"] == policy]
        axis.plot(ends, ends, linestyle=":", color=GREY, linewidth=1.2, label="uniform: ln N")
        for layer in layers:
            points = rows[rows["layer"] == layer]
            colour, marker = styles[layer]
            axis.scatter(
                points["ln_tokens"], points["entropy"], s=34, color=colour, marker=marker, linewidths=0, zorder=3
            )
        if index:
            _draw_fit(axis, fits[policies[0]], ends, POLICY_COLOURS[0], f"fit of {policies[0]}", dashed=True)
        colour = POLICY_COLOURS[index % len(POLICY_COLOURS)]
        _draw_fit(axis, fits[policy], ends, colour, _fit_text(fits[policy]))
        axis.set_title(f"scale: {policy}")
        axis.set_xlabel("ln N   (N = tokens attended)")
        axis.legend(loc="upper left")
    axes[0].set_ylim(bottom=0)  # once every panel is drawn: the panels share it, and setting it ends autoscaling
    axes[0].set_ylabel("mean entropy [nats]")
    _layer_key(figure, axes, layers, styles)
    return figure


def entropy_per_layer(means: pd.DataFrame, model: str, reference: tuple[int, int] | None = None) -> Figure:
    """Entropy of every layer at the smallest and the largest size, one line a policy, and below what a policy changes.

    Where `reference`, the training size, was run too, its entropies under the first policy are drawn beside them.
    """
    sizes = _sizes_by_area(means)
    shown = sizes if len(sizes) == 1 else [sizes[0], sizes[-1]]
    middle = None if reference is None else size_name(reference)
    if middle not in sizes or middle in shown:
        middle = None
    policies, layers = _unique(means["policy"]), _unique(means["layer"])
    first, others = policies[0], policies[1:]
    width = min(max(4.6, 0.32 * len(layers) + 1.5), MAX_PANEL_WIDTH)
    figure, axes = _panels(
        len(shown), title=f"Self-attention entropy by layer, {model}", panel_width=width, change_row=bool(others)
    )
    changes = figure.axes[len(shown) :]
    places = np.arange(len(layers))
    for column, (axis, size) in enumerate(zip(axes, shown, strict=True)):
        if middle is not None:
            values = _by_layer(means, first, middle, layers)
            axis.plot(places, values, color=GREY, linestyle=":", linewidth=1.4, label=f"{first}, {middle} px")
        base = _by_layer(means, first, size, layers)
        for index, policy in enumerate(policies):
            colour, marker = POLICY_COLOURS[index % len(POLICY_COLOURS)], MARKERS[index % len(MARKERS)]
            values = _by_layer(means, policy, size, layers)
            axis.plot(places, values, color=colour, marker=marker, label=policy)
            if policy != first:
                bar = 0.8 / len(others)
                offset = (index - 1 - (len(others) - 1) / 2) * bar
                changes[column].bar(places + offset, values - base, width=bar, color=colour)
        axis.set_title(f"{size} px")
        lowest = changes[column] if others else axis
        axis.tick_params(labelbottom=not others)
        _layer_ticks(lowest, layers)
        lowest.set_xlabel("layer, in the order of the forward pass")
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("mean entropy [nats]")
    if others:
        changes[0].set_ylabel(f"change against\n{first} [nats]")
        for axis in changes:
            axis.axhline(0, color="black", linewidth=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="scale")
    return figure


def head_heat_map(entropy: pd.DataFrame, model: str) -> Figure:
    """Head x layer at the largest size as H / ln N, a panel a policy, and what the second policy changes."""
    rows = self_attention_rows(entropy)
    size = _sizes_by_area(rows)[-1]
    rows = rows[(rows["size"] == size) & (rows["seqlen_k"] > 1)]
    rows = rows.assign(relative=rows["mean"] / np.log(rows["seqlen_k"]))
    policies, layers = _unique(rows["policy"]), _unique(rows["layer"])
    grids = {
        policy: rows[rows["policy"] == policy]
        .pivot_table(index="head", columns="layer", values="relative", aggfunc="mean")
        .reindex(columns=layers)
        for policy in policies
    }
    relative = rows.groupby(["policy", "layer", "head"])["relative"].mean()
    own = {"cmap": "cividis", "vmin": relative.min(), "vmax": relative.max()}
    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        (f"scale: {policy}", grid.to_numpy(), own) for policy, grid in grids.items()
    ]
    if len(policies) > 1:
        change = grids[policies[1]].to_numpy() - grids[policies[0]].to_numpy()
        reach = max(float(np.nanmax(np.abs(change))), 1e-6)
        panels.append((f"{policies[1]} - {policies[0]}", change, {"cmap": "PuOr", "vmin": -reach, "vmax": reach}))
    heads = len(next(iter(grids.values())))
    figure, axes = _panels(
        len(panels),
        title=f"Entropy of every head at {size} px, {model}",
        panel_width=min(max(3.4, 0.3 * len(layers) + 1.2), MAX_PANEL_WIDTH),
        height=max(3.4, 0.28 * heads + 2.2),
    )
    for axis, (title, grid, colours) in zip(axes, panels, strict=True):
        image = axis.imshow(grid, aspect="auto", interpolation="nearest", **colours)
        axis.set_title(title)
        _layer_ticks(axis, layers)
        axis.set_yticks(np.arange(heads) if heads <= 10 else np.arange(0, heads, 4))
        axis.grid(False)
        axis.spines[["top", "right"]].set_visible(True)
        if title == f"scale: {policies[-1]}":
            figure.colorbar(image, ax=axes[: len(policies)], label="H / ln N", pad=0.02)
        elif colours is not own:
            figure.colorbar(image, ax=axis, label="change of H / ln N")
    axes[0].set_ylabel("head")
    return figure


def entropy_against_step(entropy: pd.DataFrame, model: str) -> Figure:
    """Mean over layers and heads against the denoising step, one line a size, a panel a policy."""
    rows = self_attention_rows(entropy)
    # layers first, so that a layer counts once however many heads it has
    by_layer = rows.groupby(["policy", "size", "height", "width", "step", "layer"], sort=False)["mean"].mean()
    means = by_layer.groupby(level=["policy", "size", "height", "width", "step"], sort=False).mean().reset_index()
    policies, sizes = _unique(means["policy"]), _sizes_by_area(means)
    figure, axes = _panels(len(policies), title=f"Self-attention entropy while denoising, {model}")
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(sizes)))
    for axis, policy in zip(axes, policies, strict=True):
        for index, size in enumerate(sizes):
            shade, marker = shades[index], MARKERS[index % len(MARKERS)]
            line = means[(means["policy"] == policy) & (means["size"] == size)].sort_values("step")
            axis.plot(line["step"] + 1, line["mean"], color=shade, marker=marker, markersize=4, label=size)
        axis.set_title(f"scale: {policy}")
        axis.set_xlabel("denoising step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("mean entropy [nats]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="size [px]")
    return figure


def entropy_maps(result: ProfileResult, model: str) -> Figure:
    """The first picture at the largest size, and beside it H / ln N of every token, averaged over layers of a level."""
    size, seed = result.plan.map_size, result.plan.seeds[0]
    levels = {policy: _levels(maps) for policy, maps in result.maps.items()}
    shapes = sorted({shape for by_shape in levels.values() for shape in by_shape}, reverse=True)[:MAX_MAP_LEVELS]
    figure, grid = _grid(
        len(levels), 1 + len(shapes), title=f"Attention entropy over the picture, {size_name(size)} px, {model}"
    )
    for row, policy in zip(grid, levels, strict=True):
        row[0].imshow(result.pictures[size, policy, seed][0], interpolation="nearest")
        row[0].set_ylabel(f"scale: {policy}")
    grid[0][0].set_title("picture")
    # a colour scale a column: levels differ more from each other than the tokens of one level do
    for column, shape in enumerate(shapes, start=1):
        values = [levels[policy][shape] for policy in levels]
        low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
        for row, value in zip(grid, values, strict=True):
            image = row[column].imshow(value, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        grid[0][column].set_title(f"layers of {shape[0]}x{shape[1]} tokens")
        bar = figure.colorbar(
            image,
            ax=[row[column] for row in grid],
            location="bottom",
            label="H / ln N, mean over steps",
            shrink=0.9,
            pad=0.02,
        )
        bar.locator = MaxNLocator(4)
    return figure


def contact_sheet(result: ProfileResult, model: str) -> Figure:
    """Generated pictures of the first seed: a column a size, a row a (prompt, policy)."""
    plan = result.plan
    prompts, seed = list(plan.prompts)[:MAX_SHEET_PROMPTS], plan.seeds[0]
    rows = [(index, policy) for index in range(len(prompts)) for policy in plan.policies]
    figure, grid = _grid(
        len(rows), len(plan.sizes), title=f"Pictures by size and scale, {model}, seed {seed}", cell=1.7
    )
    for (index, policy), row in zip(rows, grid, strict=True):
        for size, axis in zip(plan.sizes, row, strict=True):
            axis.imshow(result.pictures[size, policy, seed][index], interpolation="nearest")
        row[0].set_ylabel(policy)
        if policy == next(iter(plan.policies)):
            row[0].set_title(prompts[index], loc="left", fontsize=10, pad=6)
    for size, axis in zip(plan.sizes, grid[-1], strict=True):
        axis.set_xlabel(f"{size_name(size)} px")
    return figure


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str], title: str) -> Image.Image:
    """Pictures of one size in a row, a caption below each and the title above; small ones are enlarged to be seen."""
    zoom = max(1, math.ceil(MIN_COMPARE_WIDTH / pictures[0].width))
    width, height = pictures[0].width * zoom, pictures[0].height * zoom
    gap, line = 16, 28
    sheet_width = gap + (width + gap) * len(pictures)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)
    title_lines = _wrapped(title, font, sheet_width - 2 * gap)
    top = gap // 2 + line * len(title_lines)
    sheet = Image.new("RGB", (sheet_width, top + height + line + gap // 2), "white")
    draw = ImageDraw.Draw(sheet)
    for index, text in enumerate(title_lines):
        draw.text((sheet_width / 2, gap // 2 + line * index), text, fill="black", font=font, anchor="ma")
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = gap + index * (width + gap)
        sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left + width / 2, top + height + 6), caption, fill="#333333", font=small, anchor="ma")
    return sheet


def layer_label(layer: str) -> str:
    """A short name for a UNet layer: down_blocks.0.attentions.1.transformer_blocks.0.attn1 -> down0.1.

    The transformer block is named only from the second on, and any other name is kept as it is.
    """
    found = re.search(r"(down|mid|up)_blocks?(?:\.(\d+))?\.attentions\.(\d+)(?:\.transformer_blocks\.(\d+))?", layer)
    if not found:
        return layer
    part, level, index, block = found.groups()
    return f"{part}{level or ''}.{index}" + (f".{block}" if block and int(block) else "")


# -- helpers --------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, title: str) -> Figure:
    """A figure outside pyplot's global state, so that a caller's own figures and settings are left alone."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    return figure


def _panels(
    count: int, title: str, panel_width: float = 4.6, height: float = 4.2, change_row: bool = False
) -> tuple[Figure, list[Any]]:
    """Panels that share their vertical axis; `change_row` puts a lower panel below each, later in `figure.axes`."""
    columns = min(count, MAX_PANELS)
    rows = math.ceil(count / columns)
    figure = _figure(panel_width * columns + 1.6, height * rows + (1.6 if change_row else 0.0), title)
    if change_row:
        axes = figure.subplots(2, count, squeeze=False, sharex="col", sharey="row", height_ratios=(2, 1)).ravel()
        unused: list[Any] = []
    else:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        axes, unused = grid[:count], grid[count:]
    for axis in unused:
        axis.remove()
    for axis in axes:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:count])


def _grid(rows: int, columns: int, title: str, cell: float = 2.6) -> tuple[Figure, list[list[Any]]]:
    figure = _figure(cell * columns + 1.2, cell * rows + 0.9, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, grid.tolist()


def _wrapped(text: str, font: Any, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _unique(values: pd.Series) -> list[Any]:
    return list(values.unique())


def _sizes_by_area(rows: pd.DataFrame) -> list[str]:
    sizes = rows[["size", "height", "width"]].drop_duplicates()
    return list(sizes.assign(area=sizes["height"] * sizes["width"]).sort_values(["area", "height"])["size"])


def _layer_styles(layers: Sequence[str]) -> dict[str, tuple[Any, str]]:
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(layers), 2)))
    return {layer: (shades[index], MARKERS[index % len(MARKERS)]) for index, layer in enumerate(layers)}


def _layer_key(
    figure: Figure, axes: Sequence[Any], layers: Sequence[str], styles: Mapping[str, tuple[Any, str]]
) -> None:
    """A legend of the layers; where there are too many to name, a colour bar of their order."""
    if len(layers) > MAX_LAYER_ENTRIES:
        colours = LinearSegmentedColormap.from_list("layers", [styles[layer][0] for layer in layers])
        bar = figure.colorbar(ScalarMappable(Normalize(1, len(layers)), colours), ax=axes, pad=0.02)
        bar.set_label("layer, in the order of the forward pass")
        return
    handles = [
        Line2D([], [], color=styles[layer][0], marker=styles[layer][1], linestyle="", label=layer_label(layer))
        for layer in layers
    ]
    figure.legend(handles=handles, loc="outside right center", title="layer")


def _layer_ticks(axis: Any, layers: Sequence[str]) -> None:
    every = math.ceil(len(layers) / MAX_LAYER_TICKS)
    labels = [layer_label(layer) for layer in layers[::every]]
    axis.set_xticks(np.arange(0, len(layers), every), labels, rotation=60, ha="right", rotation_mode="anchor")


def _by_layer(means: pd.DataFrame, policy: str, size: str, layers: Sequence[str]) -> np.ndarray:
    rows = means[(means["policy"] == policy) & (means["size"] == size)]
    return rows.set_index("layer")["entropy"].reindex(layers).to_numpy()


def _fit(means: pd.DataFrame, policy: str) -> dict[str, Any]:
    rows = means[means["policy"] == policy]
    return fit_line(rows["ln_tokens"], rows["entropy"])


def _fit_text(fit: Mapping[str, Any]) -> str:
    if fit["slope"] is None:
        return "no fit: one token count"
    r2 = "undefined" if fit["r2"] is None else f"{fit['r2']:.3f}"
    return f"slope {fit['slope']:.3f}, R² {r2}"


def _draw_fit(
    axis: Any, fit: Mapping[str, Any], ends: np.ndarray, colour: str, label: str, dashed: bool = False
) -> None:
    if fit["slope"] is None:
        axis.plot([], [], color=colour, label=label)
        return
    style = {"linestyle": "--", "linewidth": 1.2, "alpha": 0.8} if dashed else {"linewidth": 2.0}
    axis.plot(ends, fit["slope"] * ends + fit["intercept"], color=colour, label=label, **style)


def _levels(maps: Mapping[str, np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """Average the layers' maps by their shape, each as H / ln N."""
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for values in maps.values():
        if values.size > 1:
            groups.setdefault(values.shape, []).append(values / math.log(values.size))
    return {shape: np.mean(group, axis=0) for shape, group in groups.items()}


__all__ = [
    "contact_sheet",
    "entropy_against_step",
    "entropy_against_tokens",
    "entropy_maps",
    "entropy_per_layer",
    "head_heat_map",
    "layer_label",
    "save_figures",
    "side_by_side",
]
