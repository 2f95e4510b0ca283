"""The entropy over the image at the largest size, with a slider for the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from entropy_attn.explore.grids import LEVELS, codes, decoded, pooled
from entropy_attn.explore.profile_rows import largest, layer_names
from entropy_attn.explore.reading import ProfileFolder

# (steps, rows or columns) that are kept of every map: the first that fits into the budget
DETAIL = ((16, 64), (10, 64), (16, 32), (10, 32), (6, 32), (6, 16), (3, 16), (3, 8), (1, 8))
BUDGET = 600_000  # characters
MAP_SIZE = 230  # pixels


@dataclass(frozen=True)
class SpatialRows:
    """A row for each policy, layer and kept step: `codes`, one character for each token, from `low` to `high`.

    `low` and `high` are H / ln N, `steps` what was kept.
    """

    rows: list[dict[str, Any]]
    steps: list[int]
    notes: list[str]


def spatial_rows(profile: ProfileFolder) -> SpatialRows:
    """The maps of the profile, as H / ln N, with as many steps and tokens as fit."""
    names = layer_names(profile)
    tokens = {
        row.layer: int(row.seqlen_k)
        for row in profile.heads[profile.heads["size"] == largest(profile)].itertuples()
    }  # fmt: skip
    maps = {
        (policy, layer): values / math.log(tokens[layer])
        for policy, layers in profile.maps.items()
        for layer, values in layers.items()
        if layer in names and tokens[layer] > 1
    }
    if not maps:
        return SpatialRows([], [], [])
    total = max(len(values) for values in maps.values())
    count, side = next((each for each in DETAIL if _cost(maps, total, *each) <= BUDGET), DETAIL[-1])
    steps = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
    rows, coarser = [], False
    for (policy, layer), values in maps.items():
        for step in steps:
            if step >= len(values) or not np.isfinite(values[step]).all():
                continue
            grid = pooled(values[step], side)
            coarser |= grid.shape != values[step].shape
            text, low, high = codes(grid)
            place = {"policy": policy, "layer": names[layer], "step": step, "columns": grid.shape[1]}
            rows.append({**place, "codes": text, "low": low, "high": high})
    notes = [f"entropy over the image: first prompt, mean over heads, in {LEVELS} levels of each map"]
    if len(steps) < total:
        notes.append(f"entropy over the image: {len(steps)} of {total} steps are in this page")
    if coarser:
        notes.append(f"entropy over the image: larger maps are averaged to at most {side} rows and columns")
    return SpatialRows(rows, steps, notes)


def _cost(maps: dict[tuple[str, str], np.ndarray], total: int, steps: int, side: int) -> int:
    return sum(min(steps, total) * min(each.shape[1], side) * min(each.shape[2], side) for each in maps.values())


def spatial_view(profile: ProfileFolder, maps: SpatialRows) -> Any:
    """The chosen layer's map, one for each policy, in one color scale."""
    last = maps.steps[-1]
    slider = alt.param(
        name="step", value=last, bind=alt.binding_range(min=0, max=last, step=1, name="step of the maps")
    )
    # The kept step that is nearest to the slider: they are evenly spread
    step = f"{maps.steps}[round(step / {max(last, 1)} * {len(maps.steps) - 1})]"
    panels = []
    for index, policy in enumerate(dict.fromkeys(row["policy"] for row in maps.rows)):
        chart = (
            alt.Chart(alt.NamedData("maps"), title=alt.Title(policy, fontWeight="normal"))
            .transform_filter(alt.FieldEqualPredicate(field="policy", equal=policy))
            .transform_filter(f"datum.layer == chosen.layer[0] && datum.step == {step}")
        )
        panel = (
            decoded(chart)
            .mark_rect(tooltip=True)
            .encode(
                x=alt.X("column:O", axis=None),
                y=alt.Y("row:O", axis=None),
                color=alt.Color(
                    "value:Q", title="H / ln N",
                    scale=alt.Scale(scheme="cividis", zero=False, nice=False),
                ),
                tooltip=["row:O", "column:O", alt.Tooltip("value:Q", title="H / ln N", format=".3f")],
            )
            .properties(width=MAP_SIZE, height=MAP_SIZE)
        )  # fmt: skip
        panels.append(panel.add_params(slider) if index == 0 else panel)
    title = alt.Title(
        alt.expr(f"'Entropy over the image, {largest(profile)} px: ' + chosen.layer[0] + ', step ' + {step}")
    )
    return alt.concat(*panels, columns=4, title=title).resolve_scale(color="shared")
