"""What did the evaluation find, by size? The figure of summary.csv, with 95 % intervals.

python -m benchmarks.shapes.transformer.figure --csv runs/evaluation/summary.csv --out runs/evaluation/summary.png
python -m benchmarks.shapes.transformer.figure --csv benchmarks/results/shapes_scale.csv --out shapes-scale.png
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common import new_parser, read_rows
from entropy_attn.plots.style import DPI, GREY, new_figure, plain_axis, policy_style

PANELS = {
    ("presence", ""): "every object present",
    ("correct", ""): "every object and no other",
    ("count_error", ""): "count error |found - requested|",
    ("presence", "difference"): "difference to off",
    ("correct", "difference"): "difference to off",
    ("count_error", "difference"): "difference to off",
}
WIDTH = 0.16  # between policies at one size


def draw(rows: list[dict[str, str]], title: str) -> Figure:
    """Means above, paired differences below; sizes in the order of the rows."""
    sizes, policies = (list(dict.fromkeys(row[name] for row in rows)) for name in ("size", "policy"))
    figure = new_figure(14, 7, title)
    axes = figure.subplots(2, 3).ravel()
    for axis, ((measure, kind), label) in zip(axes, PANELS.items(), strict=True):
        plain_axis(axis)
        columns = ("difference", "difference_low", "difference_high") if kind else ("mean", "low", "high")
        for index, policy in enumerate(policies):
            found = {
                sizes.index(row["size"]): [float(row[name]) for name in columns]
                for row in rows
                if (row["policy"], row["measure"]) == (policy, measure) and row[columns[0]]
            }
            if not found:
                continue
            x = [at + WIDTH * (index - (len(policies) - 1) / 2) for at in found]
            middle, low, high = zip(*found.values(), strict=True)
            below = [m - one for m, one in zip(middle, low, strict=True)]
            above = [one - m for m, one in zip(middle, high, strict=True)]
            axis.errorbar(x, middle, yerr=[below, above], fmt="", linestyle="none", capsize=2, label=policy,
                          **policy_style(index))  # fmt: skip
        if kind:
            axis.axhline(0.0, color=GREY, linewidth=1)
        axis.set_xticks(range(len(sizes)), sizes)
        axis.set_xlim(-0.5, len(sizes) - 0.5)
        axis.set_xlabel("size, px")
        axis.set_ylabel(label)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--csv", type=Path, required=True, help="summary.csv of the evaluation")
    parser.add_argument("--out", type=Path, required=True, help="the figure")
    args = parser.parse_args()
    rows = read_rows(args.csv)
    if not rows:
        parser.error(f"--csv: expected a table of the evaluation, got {str(args.csv)!r} without rows")
    count = rows[0]["captions"]
    draw(rows, f"Scale policies by size, {count} captions, paired noise, 95 % intervals").savefig(args.out, dpi=DPI)
    print(args.out)


if __name__ == "__main__":
    main()
