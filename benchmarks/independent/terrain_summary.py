"""Means and 95 % intervals of the terrain model's entropies over seeds, and their figure."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.independent.terrain_model import TRAIN_SIZE
from entropy_attn.plots.style import DPI, GREY, named_handles, panels, policy_style

CELL = (4, 8, 16)  # pixels of a token's side, by level
GROUPS = tuple((TRAIN_SIZE // cell) ** 2 for cell in CELL)  # T: the level's tokens at the training size
NAMES = {"off": "off: 1/√d", "logn": "LogN"}
Key = tuple[int, str]  # size, scale


def ratio_interval(over: np.ndarray, under: np.ndarray) -> tuple[float, float, float]:
    """sum(over) / sum(under) and its 95 % interval: Student's t over seeds, for a ratio with the delta method.

    Args:
        over: (seeds,).
        under: (seeds,), of the same seeds; ones for a mean.

    Raises:
        ValueError: there are fewer than two seeds.
    """
    seeds = len(over)
    if seeds < 2:
        raise ValueError(f"over: expected at least two seeds for an interval over them, got {seeds}")
    ratio = over.sum() / under.sum()
    error = (over - ratio * under).std(ddof=1) / abs(under.mean()) / math.sqrt(seeds)
    width = stats.t.ppf(0.975, seeds - 1) * error
    return float(ratio), float(ratio - width), float(ratio + width)


def by_seed(rows: list[dict[str, str]], column: str) -> dict[Key, np.ndarray]:
    """{(size, scale): a value for each seed}, for the seeds that have all images."""
    values: dict[str, dict[Key, float]] = defaultdict(dict)
    for row in rows:
        values[row["seed"]][int(row["size"]), row["scale"]] = float(row[column])
    most = max(map(len, values.values()))
    whole = [found for found in values.values() if len(found) == most]
    return {key: np.array([found[key] for found in whole]) for key in whole[0]}


def summarize(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of layers x size x scale x quantity, in nats unless it is a share.

    - entropy: the mean over queries, heads and layers.
    - drift: from the entropy at the training size, for the same seeds.
    - undone: what the scale takes off the entropy of "off", in the direction of the drift. "predicted" is what it would
      be by Eq. 5 of Jin et al. for Gaussian logits that have the layers' entropy at the training size.
    - share: undone / drift of "off", where the interval of the latter leaves out zero.
    - slope: of the entropy against ln N over all sizes.
    - change: of the image, root mean square, as a share of the range of its values.
    """
    table: list[dict[str, str]] = []
    changes = by_seed(rows, "change")
    seeds = len(changes[TRAIN_SIZE, "off"])
    sizes = sorted({size for size, _ in changes})
    ones = np.ones(seeds)

    def add(layers: str, size: object, scale: str, quantity: str, over, under=ones, predicted: str = "") -> None:
        values = dict(zip(("mean", "low", "high"), ratio_interval(over, under), strict=True))
        table.append({"layers": layers, "size": str(size), "scale": scale, "quantity": quantity,
                      **{name: f"{value:.4f}" for name, value in values.items()}, "predicted": predicted,
                      "seeds": str(seeds)})  # fmt: skip

    for cell, tokens in zip(CELL, GROUPS, strict=True):
        layers = f"T={tokens}"
        found = by_seed(rows, f"entropy_{tokens}")
        trained = found[TRAIN_SIZE, "logn"] = found[TRAIN_SIZE, "off"]  # the scales are equal there
        for size, scale in itertools.product(sizes, NAMES):
            add(layers, size, scale, "entropy", found[size, scale])
            if size != TRAIN_SIZE:
                add(layers, size, scale, "drift", found[size, scale] - trained)
        for size in sizes:
            if size == TRAIN_SIZE:
                continue
            drift, undone = found[size, "off"] - trained, found[size, "off"] - found[size, "logn"]
            expected = undone_by_eq_5(trained.mean(), (size // cell) ** 2, tokens)
            add(layers, size, "logn", "undone", undone, predicted=f"{expected:.4f}")
            _, low, high = ratio_interval(drift, ones)
            if low > 0 or high < 0:
                add(layers, size, "logn", "share", undone, drift)
        ln_n = np.log([(size // cell) ** 2 for size in sizes])
        for scale in NAMES:
            curves = np.stack([found[size, scale] for size in sizes])  # (sizes, seeds)
            add(layers, "all", scale, "slope", np.polyfit(ln_n, curves, 1)[0])
    for size, scale in changes:
        if scale == "logn":
            add("", size, scale, "change", changes[size, scale])
    return table


def undone_by_eq_5(entropy: float, tokens: int, train_tokens: int) -> float:
    """What LogN takes off by H = ln N - sigma**2 / 2, with sigma from the entropy at N = T."""
    return (math.log(train_tokens) - entropy) * (math.log(tokens) / math.log(train_tokens) - 1)


def draw(table: list[dict[str, str]], path: Path) -> None:
    """Entropy against the number of tokens, a panel for the layers of each level."""
    figure, axes = panels(len(GROUPS), "", share_y=False)
    for axis, cell, tokens in zip(axes, CELL, GROUPS, strict=True):
        rows = [row for row in table if row["layers"] == f"T={tokens}" and row["quantity"] == "entropy"]
        counts = sorted({(int(row["size"]) // cell) ** 2 for row in rows})
        axis.plot(counts, np.log(counts), "--", color=GREY, linewidth=1.2, label="ln N, the largest possible")
        axis.axvline(tokens, color=GREY, linewidth=1, linestyle=":", label="T, the training size")
        for index, scale in enumerate(NAMES):
            shown = [row for row in rows if row["scale"] == scale]
            x = np.array([(int(row["size"]) // cell) ** 2 for row in shown]) * 1.03 ** (index - 0.5)
            middle, low, high = (np.array([float(row[name]) for row in shown]) for name in ("mean", "low", "high"))
            axis.errorbar(x, middle, yerr=[middle - low, high - middle], label=NAMES[scale], markersize=4.5,
                          linewidth=1.3, capsize=2, **policy_style(index))  # fmt: skip
        axis.set(xscale="log", xlabel="N, tokens", title=f"layers with T = {tokens}")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
    axes[0].set_ylabel("mean entropy [nats]")
    handles = named_handles(axes[:1])
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=DPI)
