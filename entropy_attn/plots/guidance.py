"""The sheet of `entropy-attn generate --show-maps`: what a guidance did to the maps of words, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from entropy_attn.guidance import TSAM, Guidance, Prompt
from entropy_attn.plots.maps import draw_maps, grid_of
from entropy_attn.plots.style import BLUE, GREY, color_bar, new_sheet, plain_axis

CELL, MAX_CELL = 1.32, 2.0  # inches, of a map: for many words, and for few
MIN_WIDTH = 10.6
PANEL = 2.9  # inches, of a matrix
MAX_NUMBERED = 8  # tokens of a matrix whose values are written into its cells
MAX_LABELS = 16  # names of tokens beside a matrix; of more tokens, every second or third is named
COLORS = (GREY, BLUE)  # without and with guidance
MATRIX_COLORS = "YlGnBu"


class Guided(Protocol):
    """What `attach` returns, and `last_guidance` of a T-SAM pipeline: data of the latest generation."""

    guidance: Guidance
    losses: list[tuple[int, Tensor]]
    maps: Tensor | None
    prompts: list[Prompt]


def guidance_sheet(
    guided: Guided,
    pictures: Sequence[Image.Image],
    *,
    unguided: Guided | None = None,
    index: int = 0,
    title: str | None = None,
    subtitle: str = "",
) -> Figure:
    """Draw the map of each word at the last guided step, the matrices T and S of T-SAM, and the loss of each step.

    Args:
        guided: the handle of `attach`, or `last_guidance` of a T-SAM pipeline, after a generation.
        pictures: the generated image; with `unguided`, the images without and with guidance, in this order.
        unguided: the handle of a generation with alpha=0, which is measured but not changed.
        index: index of the image in the batch.
        title: above the sheet; None is the prompt.
        subtitle: below the sheet.

    Returns:
        A matplotlib figure outside pyplot's global state.

    Raises:
        ValueError: nothing was guided, for example because the prompt has one word; or `pictures` or `index` do not
            fit the generation.
    """
    runs = {"with guidance": guided} if unguided is None else {"without guidance": unguided, "with guidance": guided}
    if len(pictures) != len(runs):
        raise ValueError(f"pictures: expected {len(runs)} ({', '.join(runs)}), got {len(pictures)}")
    for run in runs.values():
        images = len(_maps_of(run))
        if not 0 <= index < images:
            raise ValueError(f"index: expected an image from 0 to {images - 1}, got {index}")
    prompt = guided.prompts[index]
    words = [word for word in prompt.text.words if set(word.positions) <= set(prompt.tokens)]
    bands, columns = grid_of(len(words))
    width = max(CELL * columns + 1.1, MIN_WIDTH)
    cell = min((width - 1.1) / columns, MAX_CELL)
    aspect = pictures[0].height / pictures[0].width
    upper = bands * len(runs) * (cell * aspect + 0.04) + 0.18 * bands + 0.3
    lower = PANEL + 0.75
    written = prompt.text.prompt if isinstance(prompt.text.prompt, str) else " / ".join(prompt.text.prompt)
    figure = new_sheet(width, upper + lower, written if title is None else title, subtitle)
    above, below = figure.subfigures(2, 1, height_ratios=(upper, lower), squeeze=False)[:, 0]
    rows = {}
    for (name, run), image in zip(runs.items(), pictures, strict=True):
        maps = _maps_of(run)[index].cpu()
        rows[name] = image, torch.stack([maps[..., list(word.positions)].mean(-1) for word in words])
    draw_maps(above, rows, [word.label for word in words])
    _draw_lower(below, runs, index)
    return figure


def _maps_of(run: Guided) -> Tensor:
    if run.maps is None:
        raise ValueError(
            "guided: expected a handle that has maps, got one whose generation was not guided: the prompt needs at "
            "least two words, and the guidance at least one step"
        )
    return run.maps


def _draw_lower(figure: Any, runs: dict[str, Guided], index: int) -> None:
    matrices = _matrices(runs, index)
    panels = figure.subplots(1, len(matrices) + 1, width_ratios=[1.0] * len(matrices) + [1.3], squeeze=False)[0]
    prompt = list(runs.values())[-1].prompts[index]
    names = [prompt.text.token(position).label for position in prompt.tokens]
    for number, (axis, (name, values)) in enumerate(zip(panels, matrices.items(), strict=False)):
        _draw_matrix(axis, values, names, name, rows_named=number == 0)
    if matrices:
        color_bar(figure, panels[:-1], colormaps[MATRIX_COLORS], "T and S", shrink=0.7, aspect=22)
    _draw_losses(panels[-1], runs, index)


def _matrices(runs: dict[str, Guided], index: int) -> dict[str, np.ndarray]:
    """T, and S of every run; empty for a guidance without these matrices."""
    guided = list(runs.values())[-1]
    if not isinstance(guided.guidance, TSAM):
        return {}
    found = {"T of the\ntext encoder": guided.guidance.text_matrix(guided.prompts[index])}
    for name, run in runs.items():
        maps = _maps_of(run)[index]
        found[f"S of the maps\n{name}"] = guided.guidance.image_matrix(maps, run.prompts[index])
    return {name: values.detach().float().cpu().numpy() for name, values in found.items()}


def _draw_matrix(axis: Any, values: np.ndarray, names: Sequence[str], title: str, rows_named: bool) -> None:
    # Values above the diagonal are not part of the loss.
    lower = np.ma.masked_where(np.triu(np.ones_like(values, dtype=bool), 1), values)
    axis.imshow(lower, cmap=MATRIX_COLORS, vmin=0.0, vmax=1.0)
    axis.set_title(title, fontsize=11.5)
    if len(names) <= MAX_NUMBERED:
        for row, column in zip(*np.tril_indices(len(names)), strict=True):
            value = values[row, column]
            axis.text(
                column,
                row,
                f"{value:.2f}".removeprefix("0"),
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if value > 0.55 else "#222222",
            )
    every = -(-len(names) // MAX_LABELS)
    shown = range(0, len(names), every)
    labels = [names[position] for position in shown]
    size = 10.5 if len(names) <= MAX_NUMBERED else 8.5
    axis.set_xticks(shown, labels, rotation=55, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(shown, labels if rows_named else [""] * len(labels), fontsize=size)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if len(names) > MAX_LABELS:  # cells too small for lines between them
        return
    edges = np.arange(1, len(names)) - 0.5
    axis.hlines(edges, -0.5, len(names) - 0.5, color="white", linewidth=1.0)
    axis.vlines(edges, -0.5, len(names) - 0.5, color="white", linewidth=1.0)


def _draw_losses(axis: Any, runs: dict[str, Guided], index: int) -> None:
    for (name, run), color in zip(runs.items(), COLORS[-len(runs) :], strict=True):
        steps = [step for step, _ in run.losses]
        # Refinements of a step lie between it and the next step.
        x = [step + steps[:at].count(step) / steps.count(step) for at, step in enumerate(steps)]
        values = [float(loss[index]) for _, loss in run.losses]
        axis.plot(x, values, color=color, linewidth=2.0, marker="o", markersize=3.5, label=name)
    axis.set_title("loss before each update", fontsize=11.5)
    axis.set_xlabel("denoising step", fontsize=10.5)
    axis.set_xlim(-0.3, max(x[-1], 1.0) + 0.3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(labelsize=9.5)
    plain_axis(axis)
    if len(runs) > 1:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.25 * (high - low))  # room for the legend above the lines
        axis.legend(fontsize=10, frameon=False, loc="upper left")
