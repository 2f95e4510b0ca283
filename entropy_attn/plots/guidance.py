"""The sheet of `entropy-attn generate --show-maps`: what a guidance did to the maps of the words, and its loss."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from entropy_attn.guidance import TSAM, Guidance, Prompt, attention_similarity
from entropy_attn.plots.maps import draw_maps, grid_of

CELL, MAX_CELL = 1.32, 2.0  # inches, of a map: of many words, of few
MIN_WIDTH = 10.6
PANEL = 2.9  # inches, of a matrix
MAX_NUMBERED = 8  # tokens of a matrix whose numbers are written into it
MAX_LABELS = 16  # tokens beside a matrix; of more every second, third, ... is named
COLOURS = ("#8a8a8a", "#0072B2")  # without and with, from Okabe and Ito's palette
MATRIX_COLOURS = "YlGnBu"


class Guided(Protocol):
    """What `attach` returns, and `last_guidance` of a T-SAM pipeline: of the latest generation."""

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
    """Draw the maps of every word at the last guided step, the matrices T and S for T-SAM, and the loss of every step.

    guided: the handle of `attach`, or `last_guidance` of a T-SAM pipeline, after a generation.
    pictures: what was generated; with `unguided` the pictures without and with guidance, in this order.
    unguided: the same of a generation at alpha=0, which draws what the pipeline draws by itself and measures it.
    index: which picture of the batch.
    title: by default the prompt.

    Raises:
        ValueError: nothing was guided, as with a prompt of one word; pictures or an index that do not fit.
    """
    runs = {"with guidance": guided} if unguided is None else {"without guidance": unguided, "with guidance": guided}
    if len(pictures) != len(runs):
        raise ValueError(f"pictures: {len(runs)} are needed, without and with guidance if both are drawn")
    for run in runs.values():
        if run.maps is None:
            raise ValueError("nothing was guided, so there are no maps: the prompt needs two words and steps one step")
        if not 0 <= index < len(run.maps):
            raise ValueError(f"index={index}: a picture from 0 to {len(run.maps) - 1} is needed")
    prompt = guided.prompts[index]
    words = [word for word in prompt.text.words if set(word.positions) <= set(prompt.tokens)]
    bands, columns = grid_of(len(words))
    width = max(CELL * columns + 1.1, MIN_WIDTH)
    cell = min((width - 1.1) / columns, MAX_CELL)
    heading = textwrap.wrap(prompt.text.prompt if title is None else title, int(7.4 * width)) or [""]
    aspect = pictures[0].height / pictures[0].width
    upper = bands * len(runs) * (cell * aspect + 0.04) + 0.18 * bands + 0.3
    lower = PANEL + 0.75
    figure = Figure(
        figsize=(width, upper + lower + 0.32 * len(heading) + (0.3 if subtitle else 0.0)),
        layout="constrained",
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04, wspace=0.02, hspace=0.02)
    figure.suptitle("\n".join(heading), fontsize=15, fontweight="bold")
    above, below = figure.subfigures(2, 1, height_ratios=(upper, lower))
    rows = {}
    for (name, run), picture in zip(runs.items(), pictures, strict=True):
        maps = run.maps[index].cpu()
        rows[name] = picture, torch.stack([maps[..., list(word.positions)].mean(-1) for word in words])
    draw_maps(above, rows, [word.label for word in words])
    _draw_lower(below, runs, index)
    if subtitle:
        figure.supxlabel(textwrap.fill(subtitle, int(13 * width)), fontsize=9.5, color="#666666")
    return figure


def _draw_lower(figure: Any, runs: dict[str, Guided], index: int) -> None:
    matrices = _matrices(runs, index)
    panels = figure.subplots(1, len(matrices) + 1, width_ratios=[1.0] * len(matrices) + [1.3], squeeze=False)[0]
    prompt = list(runs.values())[-1].prompts[index]
    names = [prompt.text.token(place).label for place in prompt.tokens]
    for number, (axis, (name, values)) in enumerate(zip(panels, matrices.items(), strict=False)):
        _draw_matrix(axis, values, names, name, rows_named=number == 0)
    if matrices:
        bar = figure.colorbar(
            ScalarMappable(Normalize(0.0, 1.0), colormaps[MATRIX_COLOURS]),
            ax=panels[:-1].tolist(),
            shrink=0.7,
            aspect=22,
            pad=0.012,
        )
        bar.set_label("T and S", fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    _draw_losses(panels[-1], runs, index)


def _matrices(runs: dict[str, Guided], index: int) -> dict[str, np.ndarray]:
    """T, and S of every run; none for a guidance that knows no such matrices."""
    guided = list(runs.values())[-1]
    if not isinstance(guided.guidance, TSAM):
        return {}
    found = {"T of the\ntext encoder": guided.guidance.text_matrix(guided.prompts[index])}
    for name, run in runs.items():
        maps = run.maps[index]
        found[f"S of the maps\n{name}"] = attention_similarity(
            maps.flatten(0, 1), tuple(maps.shape[:2]), run.prompts[index].tokens, variant=guided.guidance.variant
        )
    return {name: values.detach().float().cpu().numpy() for name, values in found.items()}


def _draw_matrix(axis: Any, values: np.ndarray, names: Sequence[str], title: str, rows_named: bool) -> None:
    # What lies above the diagonal has no part in the loss.
    looked_at = np.ma.masked_where(np.triu(np.ones_like(values, dtype=bool), 1), values)
    axis.imshow(looked_at, cmap=MATRIX_COLOURS, vmin=0.0, vmax=1.0)
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
    places = range(0, len(names), every)
    labels = [names[place] for place in places]
    size = 10.5 if len(names) <= MAX_NUMBERED else 8.5
    axis.set_xticks(places, labels, rotation=55, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(places, labels if rows_named else [""] * len(labels), fontsize=size)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if len(names) > MAX_LABELS:  # cells too small for lines between them
        return
    edges = np.arange(1, len(names)) - 0.5
    axis.hlines(edges, -0.5, len(names) - 0.5, color="white", linewidth=1.0)
    axis.vlines(edges, -0.5, len(names) - 0.5, color="white", linewidth=1.0)


def _draw_losses(axis: Any, runs: dict[str, Guided], index: int) -> None:
    for (name, run), colour in zip(runs.items(), COLOURS[-len(runs) :], strict=True):
        steps = [step for step, _ in run.losses]
        # Refinements of a step lie between it and the next.
        places = [step + steps[:at].count(step) / steps.count(step) for at, step in enumerate(steps)]
        values = [float(loss[index]) for _, loss in run.losses]
        axis.plot(places, values, color=colour, linewidth=2.0, marker="o", markersize=3.5, label=name)
    axis.set_title("loss before each update", fontsize=11.5)
    axis.set_xlabel("denoising step", fontsize=10.5)
    axis.set_xlim(-0.3, max(places[-1], 1.0) + 0.3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(labelsize=9.5)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.25 * (high - low))  # room for the legend above the lines
        axis.legend(fontsize=10, frameon=False, loc="upper left")
