"""From the tables of a profile to the rows of the page's charts: short, so that the page stays small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from entropy_attn.explore.reading import ProfileFolder
from entropy_attn.plots.layers import labels_of
from entropy_attn.profiling import layer_means, picture_rows, slopes

ALL_HEADS = -1
Rows = list[dict[str, Any]]


def short(values: Any) -> list[float | None]:
    """Four significant digits; None for what was not measured."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def layer_names(profile: ProfileFolder) -> dict[str, str]:
    """{layer: its short name}, in the order of the forward pass."""
    layers = list(dict.fromkeys(picture_rows(profile.entropy)["layer"]))
    return dict(zip(layers, labels_of(layers), strict=True))


def head_rows(profile: ProfileFolder) -> Rows:
    """H / ln N of each head: the mean over steps, seeds and prompts. Layers of a single token have no such ratio."""
    names, rows = layer_names(profile), picture_rows(profile.heads)
    rows = rows[rows["seqlen_k"] > 1]
    means = rows.groupby(["policy", "size", "layer", "head"], sort=False).agg(
        tokens=("seqlen_k", "first"), entropy=("mean", "mean")
    )
    found = means.reset_index()
    found["relative"] = short(found["entropy"] / np.log(found["tokens"]))
    found["entropy"], found["layer"] = short(found["entropy"]), found["layer"].map(names)
    return found.to_dict("records")


def step_rows(profile: ProfileFolder) -> Rows:
    """The entropy at each step: of every layer, and with `heads` of every head.

    `entropy`, `low` and `high` are lists with a value for each of `step`. Of a layer, the limits are its lowest and
    highest head; of a head there are none. `head` is `ALL_HEADS` for a layer.
    """
    names, rows = layer_names(profile), picture_rows(profile.entropy)
    keys = ["policy", "size", "layer", "step"]
    if profile.by_head:
        of_heads = rows.groupby([*keys, "head"], sort=False)["mean"].mean()
        layers = of_heads.groupby(level=keys, sort=False).agg(["mean", "min", "max"])
        layers = layers.set_axis(["entropy", "low", "high"], axis=1).reset_index().assign(head=ALL_HEADS)
        table = pd.concat([layers, of_heads.rename("entropy").reset_index()], ignore_index=True)
    else:
        means = rows.groupby(keys, sort=False).agg(
            entropy=("mean", "mean"), low=("head_min", "mean"), high=("head_max", "mean")
        )
        table = means.reset_index().assign(head=ALL_HEADS)
    found = []
    for (policy, size, layer, head), group in table.groupby(["policy", "size", "layer", "head"], sort=False):
        group = group.sort_values("step")
        row = {"policy": policy, "size": size, "layer": names[layer], "head": int(head), "step": group["step"].tolist()}
        row["entropy"] = short(group["entropy"])
        if head == ALL_HEADS:
            row |= {"low": short(group["low"]), "high": short(group["high"])}
        found.append(row)
    return found


def token_rows(profile: ProfileFolder) -> Rows:
    """The mean entropy of each layer at each size, with its ln N."""
    names, means = layer_names(profile), layer_means(profile.entropy)
    means["layer"] = means["layer"].map(names)
    means["entropy"], means["ln_tokens"] = short(means["entropy"]), short(means["ln_tokens"])
    return means[["policy", "size", "layer", "tokens", "ln_tokens", "entropy"]].to_dict("records")


def slope_rows(profile: ProfileFolder) -> Rows:
    """The slope of each layer's entropy against ln N; none where a layer has a single N."""
    names, found = layer_names(profile), slopes(layer_means(profile.entropy)).dropna()
    found["layer"], found["slope"] = found["layer"].map(names), short(found["slope"])
    return found[["policy", "layer", "slope"]].to_dict("records")


def layer_table(profile: ProfileFolder) -> list[list[str]]:
    """N, T and the factor of each policy on the model's default scale, by size and layer; the first row is the heading.

    T is known from the regimes, or from a run at the training size; a factor needs a run with the default scale.
    """
    names, means = layer_names(profile), layer_means(profile.entropy)
    rows = picture_rows(profile.heads)
    scales = rows.groupby(["policy", "size", "layer"], sort=False)["scale"].mean()
    baseline = default_policy(profile)
    others = [policy for policy in profile.policies if policy != baseline]
    trained = _train_tokens(profile, means)
    table = [["layer", "size, px", "N", "T", *(f"factor of {policy}" for policy in others)]]
    for row in means.drop_duplicates(["size", "layer"]).itertuples():
        train = trained.get((row.size, row.layer))
        factors = []
        for policy in others:
            key, base = (policy, row.size, row.layer), (baseline, row.size, row.layer)
            known = baseline is not None and key in scales.index and base in scales.index
            factors.append(f"{scales[key] / scales[base]:.4g}" if known else "not known")
        table.append(
            [names[row.layer], row.size, str(row.tokens), "not known" if train is None else str(train), *factors]
        )
    return table


def default_policy(profile: ProfileFolder) -> str | None:
    """The policy that is the model's default scale, by its description in summary.json."""
    from entropy_attn.profiling.plan import described
    from entropy_attn.scale import Fixed

    defaults = (described(None), described(Fixed()))
    return next((name for name, text in profile.summary["policies"].items() if text in defaults), None)


def _train_tokens(profile: ProfileFolder, means: pd.DataFrame) -> dict[tuple[str, str], int]:
    if profile.regimes is not None:
        known = profile.regimes.dropna(subset="train_tokens")
        return {(row.size, row.layer): int(row.train_tokens) for row in known.itertuples()}
    there = means[means["size"] == profile.summary["training_size"]]
    of_layer = dict(zip(there["layer"], there["tokens"], strict=True))
    return {(row.size, row.layer): of_layer[row.layer] for row in means.itertuples() if row.layer in of_layer}


def sizes(profile: ProfileFolder) -> list[str]:
    return list(profile.summary["sizes"])


def largest(profile: ProfileFolder) -> str:
    def area(size: str) -> int:
        height, width = map(int, size.split("x"))
        return height * width

    return max(sizes(profile), key=area)


def unique(rows: Rows, column: str) -> Sequence[Any]:
    return list(dict.fromkeys(row[column] for row in rows))
