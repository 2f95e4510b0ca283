"""How layers appear in figures: short names, a color and a marker each, legends and ticks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entropy_attn.plots.style import MARKERS

MAX_LAYER_ENTRIES = 10  # a legend of more layers is unreadable
MAX_LAYER_TICKS = 30

_UNET = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.attentions\.(\d+)(?:\.transformer_blocks\.(\d+))?(?:\.(attn\d))?$"
)
_BLOCK = re.compile(r"^(single_)?(?:transformer_)?(blocks|layers)\.(\d+)\.(.+)$")


def layer_label(layer: str) -> str:
    """A short name for a layer, different from those of all other layers of the model.

    down_blocks.1.attentions.0.transformer_blocks.2.attn1 -> down1.0.2, its attn2 -> down1.0.2.attn2;
    single_transformer_blocks.7.attn -> single7.attn. Any other name stays as it is.
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
    """Short names, or the whole ones if two short ones were equal."""
    short = [layer_label(layer) for layer in layers]
    return short if len(set(short)) == len(short) else list(layers)


def layer_styles(layers: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """{layer: (color, marker)}."""
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(layers), 2)))
    return {layer: (shades[index], MARKERS[index % len(MARKERS)]) for index, layer in enumerate(layers)}


def layer_key(figure: Figure, axes: Sequence[Any], styles: Mapping[str, tuple[Any, str]]) -> None:
    """A legend of the layers, or a color bar of their order if there are too many to name."""
    layers = list(styles)
    if len(layers) > MAX_LAYER_ENTRIES:
        colors = LinearSegmentedColormap.from_list("layers", [styles[layer][0] for layer in layers])
        bar = figure.colorbar(ScalarMappable(Normalize(1, len(layers)), colors), ax=axes, pad=0.02)
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
