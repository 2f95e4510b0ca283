"""Means, intervals and the figure of the pictures that benchmarks.guidance.evaluate marked.

    python -m benchmarks.guidance.summary

Intervals are 95 % percentile bootstraps over captions: all seeds of a caption are drawn together, as their pictures are
not independent. A difference is to the picture without guidance of the same caption and seed.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.guidance.arms import ARMS
from benchmarks.guidance.choose import TABLE, chosen_settings
from benchmarks.guidance.evaluate import PICTURES, RESULTS
from benchmarks.report.guidance import GUIDANCES, METRICS
from entropy_attn.bench.machine import machine, version

SPLITS = ("seen", "held-out", "all")
RESAMPLES = 10_000
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "tsam_shapes.png"
Key = tuple[str, str, str]  # split, caption, seed


def interval(by_caption: Iterable[list[float]], resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Mean of all values, and its 95 % interval with captions drawn whole.

    by_caption: the values of each caption, as many as it has seeds.
    """
    groups = [values for values in by_caption if values]
    sums, sizes = (np.array([f(values) for values in groups], dtype=float) for f in (sum, len))
    mean = sums.sum() / sizes.sum()
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} caption(s): an interval over captions needs two at least")
    drawn = stats.bootstrap(
        (sums, sizes), lambda s, n, axis=-1: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        n_resamples=resamples, batch=1000, method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(mean), float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def summarise(values: dict[str, dict[Key, dict[str, float]]], resamples: int = RESAMPLES) -> list[dict]:
    """Rows of arm x split x metric. values: arm -> picture -> metric -> mark; a relation is not in every caption."""
    rows = []
    for arm, pictures in values.items():
        for split in SPLITS:
            for metric in METRICS:
                marks: dict[tuple[str, str], list[float]] = defaultdict(list)
                changes: dict[tuple[str, str], list[float]] = defaultdict(list)
                for key, found in pictures.items():
                    if split not in (key[0], "all") or metric not in found:
                        continue
                    marks[key[:2]].append(found[metric])
                    if key in values["none"]:
                        changes[key[:2]].append(found[metric] - values["none"][key][metric])
                if len(marks) < 2:
                    continue
                row = dict(zip(("mean", "low", "high"), interval(marks.values(), resamples), strict=True))
                if arm != "none":
                    names = ("difference", "difference_low", "difference_high")
                    row |= dict(zip(names, interval(changes.values(), resamples), strict=True))
                row = {name: f"{value:.4f}" for name, value in row.items()}
                seeds = len({key[2] for key in pictures if split in (key[0], "all")})
                about = {"captions": len(marks), "seeds": seeds, "pictures": sum(map(len, marks.values()))}
                rows.append({"arm": arm, "split": split, "metric": metric, **row, **about})
    return rows


def read(path: Path, selection: Path) -> dict[str, dict[Key, dict[str, float]]]:
    """The marks of every arm at its chosen strength, of the pictures that every arm has drawn.

    Of a run that was cut short, the arms of its last batch that came first have more.
    """
    chosen = {(s.arm, s.alpha, s.gamma) for s in chosen_settings(selection)}
    values: dict[str, dict[Key, dict[str, float]]] = {arm: {} for arm in ARMS}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["arm"], row["alpha"], row["gamma"]) in chosen:
                marks = {name: float(row[name]) for name in METRICS if row[name]}
                values[row["arm"]][row["split"], row["caption"], row["seed"]] = marks
    drawn = {arm: pictures for arm, pictures in values.items() if pictures}
    shared = set.intersection(*(set(pictures) for pictures in drawn.values()))
    return {arm: {key: pictures[key] for key in sorted(shared)} for arm, pictures in drawn.items()}


def draw(rows: list[dict], path: Path) -> None:
    """Differences to no guidance, in percentage points, of every arm, metric and split."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    arms = [arm for arm in ARMS if arm != "none" and any(row["arm"] == arm for row in rows)]
    figure, axes = plt.subplots(1, len(METRICS), figsize=(12, 4.2), sharey=True, layout="constrained")
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        axis.axvline(0, color="0.6", linewidth=1)
        for split, colour, marker, shift in (("seen", "#0072B2", "o", -0.14), ("held-out", "#D55E00", "s", 0.14)):
            found = {r["arm"]: r for r in rows if r["split"] == split and r["metric"] == metric}
            places = [i + shift for i, arm in enumerate(arms) if arm in found]
            middle, low, high = (
                100 * np.array([float(found[arm][name]) for arm in arms if arm in found])
                for name in ("difference", "difference_low", "difference_high")
            )
            axis.errorbar(middle, places, xerr=[middle - low, high - middle], fmt=marker, color=colour, label=split,
                          markersize=4.5, linewidth=1.3, capsize=2)  # fmt: skip
            base = [r for r in rows if (r["arm"], r["split"], r["metric"]) == ("none", split, metric)]
            if base:
                text = f"{split}: {100 * float(base[0]['mean']):.0f} % without guidance"
                axis.annotate(text, (0.5, 1.02 + 0.07 * (shift < 0)), xycoords="axes fraction", ha="center", fontsize=8,
                              color=colour)  # fmt: skip
        axis.set_title(title, fontsize=10, pad=32)
        axis.grid(axis="x", color="0.92")
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(arms)), [GUIDANCES[arm] for arm in arms])
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(-0.02, 0.98))
    figure.supxlabel("difference to no guidance, percentage points (95 % interval over captions)", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--selection", type=Path, default=TABLE)
    parser.add_argument("--csv", type=Path, default=RESULTS / "tsam.csv")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--commit", help="the commit that the rows name, where the folder is no git checkout")
    args = parser.parse_args()

    strength = {setting.arm: setting for setting in chosen_settings(args.selection)}
    about = machine(torch.device("cpu"), args.commit)
    del about["driver"], about["triton"]
    versions = {name: version(name) for name in ("diffusers", "transformers")}
    rows = [
        row | {"alpha": strength[row["arm"]].alpha, "gamma": strength[row["arm"]].gamma} | versions | about
        for row in summarise(read(args.pictures, args.selection))
    ]
    fields = list(dict.fromkeys(name for row in reversed(rows) for name in row))
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.figure)


if __name__ == "__main__":
    main()
