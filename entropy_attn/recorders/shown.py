"""What recorders show of themselves: a row for each layer, as a table and in a notebook, and figures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from entropy_attn.display import Html
from entropy_attn.errors import naming_the_extra
from entropy_attn.recorders import overlay as heat

_KEYS = ("layer", "kind", "branch", "seqlen_q", "seqlen_k")
THUMBNAIL = 96  # pixels of the longer side
NOTHING = "nothing recorded yet: generate with ea.apply(pipe, record=recorder)"


def by_layer(columns: Mapping[str, Sequence[Any]], entropy: str, others: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each layer, branch and number of tokens, in the order of the calls: means over steps and heads.

    Args:
        columns: what `to_columns` of a recorder returns.
        entropy: the column with the entropy of a head; the row has also its ratio to ln N, which is NaN for one key,
            and the lowest and highest mean of a head.
        others: the other columns to average.

    Returns:
        The rows.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, key in enumerate(zip(*(columns[name] for name in _KEYS), strict=True)):
        groups.setdefault(key, []).append(at)
    arrays = {name: np.asarray(columns[name]) for name in ("step", "head", entropy, *others)}
    rows = []
    for key, places in groups.items():
        here = {name: values[places] for name, values in arrays.items()}
        of_heads = [float(here[entropy][here["head"] == head].mean()) for head in np.unique(here["head"])]
        mean, named = float(here[entropy].mean()), dict(zip(_KEYS, key, strict=True))
        rows.append(
            {
                **named,
                "heads": len(of_heads),
                "steps": len(np.unique(here["step"])),
                **{name: float(here[name].mean()) for name in others},
                entropy: mean,
                "relative": mean / math.log(named["seqlen_k"]) if named["seqlen_k"] > 1 else math.nan,
                "head_min": min(of_heads),
                "head_max": max(of_heads),
            }
        )
    return rows


def as_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows as a pandas.DataFrame."""
    with naming_the_extra("summary()"):
        import pandas as pd
    return pd.DataFrame(list(rows))


def figures() -> Any:
    """The functions that draw recorders. They are on a floor above, and imported when something is drawn."""
    with naming_the_extra("plot()"):
        from entropy_attn.plots import recorders
    return recorders


def thumbnail(values: torch.Tensor) -> Html:
    """A small colored image of a map (rows, columns), as an <img> with its data inside."""
    rows, columns = values.shape
    zoom = max(1, THUMBNAIL // max(rows, columns))
    enlarged = heat.enlarge(values, (rows * zoom, columns * zoom), "nearest")
    data = io.BytesIO()
    heat.overlay(None, enlarged, strength=1.0).save(data, "PNG")
    return Html(f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode("ascii")}">')
