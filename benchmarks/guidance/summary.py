"""What did the evaluation find? Means, intervals and the figure, from the images that were checked.

    python -m benchmarks.guidance.summary
    python -m benchmarks.guidance.summary --pictures pictures.csv --csv summary.csv --figure summary.png

Intervals are 95 % percentile bootstraps over captions: all seeds of a caption are drawn together, because their images
are not independent. Differences are to the image without guidance for the same caption and seed.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import IMAGES, RESULTS, add_commit, new_parser, read_rows, write_rows
from benchmarks.guidance.arms import ARMS
from benchmarks.guidance.choose import TABLE, chosen_settings
from benchmarks.guidance.evaluate import PICTURES
from benchmarks.report.guidance import GUIDANCES, METRICS
from entropy_attn.bench.machine import machine, version
from entropy_attn.evaluation.statistics import RESAMPLES, interval
from entropy_attn.plots.style import BLUE, DPI, GREY, VERMILION, new_figure, plain_axis

SPLITS = ("seen", "held-out", "all")
FIGURE = IMAGES / "tsam_shapes.png"
Key = tuple[str, str, str]  # split, caption, seed


def summarize(values: dict[str, dict[Key, dict[str, float]]], resamples: int = RESAMPLES) -> list[dict]:
    """Rows of arm x split x metric.

    Args:
        values: {arm: {image: {metric: score}}}; not every caption has a relation.
        resamples: number of bootstrap samples.
    """
    rows = []
    for arm, images in values.items():
        for split in SPLITS:
            for metric in METRICS:
                marks: dict[tuple[str, str], list[float]] = defaultdict(list)
                changes: dict[tuple[str, str], list[float]] = defaultdict(list)
                for key, found in images.items():
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
                seeds = len({key[2] for key in images if split in (key[0], "all")})
                about = {"captions": len(marks), "seeds": seeds, "pictures": sum(map(len, marks.values()))}
                rows.append({"arm": arm, "split": split, "metric": metric, **row, **about})
    return rows


def read(path: Path, selection: Path) -> dict[str, dict[Key, dict[str, float]]]:
    """The scores of each arm at its chosen strength, for the images that all arms have.

    In the last batch of an incomplete run, only the first arms have images.
    """
    chosen = {(s.arm, s.alpha, s.gamma) for s in chosen_settings(selection)}
    values: dict[str, dict[Key, dict[str, float]]] = {arm: {} for arm in ARMS}
    for row in read_rows(path):
        if (row["arm"], row["alpha"], row["gamma"]) in chosen:
            scores = {name: float(row[name]) for name in METRICS if row[name]}
            values[row["arm"]][row["split"], row["caption"], row["seed"]] = scores
    drawn = {arm: images for arm, images in values.items() if images}
    shared = set.intersection(*(set(images) for images in drawn.values()))
    return {arm: {key: images[key] for key in sorted(shared)} for arm, images in drawn.items()}


def draw(rows: list[dict], path: Path) -> None:
    """Differences to no guidance, in percentage points, for each arm, metric and split."""
    arms = [arm for arm in ARMS if arm != "none" and any(row["arm"] == arm for row in rows)]
    figure = new_figure(12, 4.2, "")
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        plain_axis(axis)
        axis.axvline(0, color=GREY, linewidth=1)
        for split, color, marker, shift in (("seen", BLUE, "o", -0.14), ("held-out", VERMILION, "s", 0.14)):
            found = {r["arm"]: r for r in rows if r["split"] == split and r["metric"] == metric}
            heights = [i + shift for i, arm in enumerate(arms) if arm in found]
            middle, low, high = (
                100 * np.array([float(found[arm][name]) for arm in arms if arm in found])
                for name in ("difference", "difference_low", "difference_high")
            )
            axis.errorbar(middle, heights, xerr=[middle - low, high - middle], fmt=marker, color=color, label=split,
                          markersize=4.5, linewidth=1.3, capsize=2)  # fmt: skip
            base = [r for r in rows if (r["arm"], r["split"], r["metric"]) == ("none", split, metric)]
            if base:
                text = f"{split}: {100 * float(base[0]['mean']):.0f} % without guidance"
                axis.annotate(text, (0.5, 1.02 + 0.07 * (shift < 0)), xycoords="axes fraction", ha="center", fontsize=8,
                              color=color)  # fmt: skip
        axis.set_title(title, fontsize=10, pad=32)
        axis.grid(False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(arms)), [GUIDANCES[arm] for arm in arms])
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(-0.02, 0.98))
    figure.supxlabel("difference to no guidance, percentage points (95 % interval over captions)", fontsize=9)
    figure.savefig(path, dpi=DPI)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="the rows of benchmarks.guidance.evaluate")
    parser.add_argument("--selection", type=Path, default=TABLE, help="the table of benchmarks.guidance.choose")
    parser.add_argument("--csv", type=Path, default=RESULTS / "tsam.csv", help="write the rows to this file")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="write the figure to this file")
    add_commit(parser)
    args = parser.parse_args()

    strength = {setting.arm: setting for setting in chosen_settings(args.selection)}
    about = machine(torch.device("cpu"), args.commit)
    del about["driver"], about["triton"]
    versions = {name: version(name) for name in ("diffusers", "transformers")}
    rows = [
        row | {"alpha": strength[row["arm"]].alpha, "gamma": strength[row["arm"]].gamma} | versions | about
        for row in summarize(read(args.pictures, args.selection))
    ]
    fields = list(dict.fromkeys(name for row in reversed(rows) for name in row))
    write_rows(args.csv, rows, fields)
    draw(rows, args.figure)


if __name__ == "__main__":
    main()
