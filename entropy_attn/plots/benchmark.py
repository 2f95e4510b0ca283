"""Figures of a benchmark, from rows to PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from entropy_attn.bench.compare import added, denoising_steps, is_ours, name_of
from entropy_attn.bench.measure import Row
from entropy_attn.bench.workloads import SWEEP
from entropy_attn.plots.style import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    MARKERS,
    MAX_PANELS,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    named_handles,
    panels,
    unique,
)

OUR_COLORS = (VERMILION, ORANGE, PINK, "#8c564b")  # warm; those of the other implementations are cool
OTHER_COLORS = (BLUE, SKY, GREEN, "#5a5a5a", "#9a9a9a", "#003f5c", "#7fb8a4")
PASSES = {"forward": "forward", "both": "forward and backward"}
SIDES = {"ours": (OUR_COLORS[0], "ours (auto)"), "other": (OTHER_COLORS[0], "torch, or the best other way")}
MAX_SIZES_AS_BARS = 2
MAX_BARS = 40  # shapes in one panel
TASKS = {"plain": "plain call", "lse": "with lse", "entropy": "with entropy", "map": "with maps"}


def save_figures(rows: list[Row], about: Row, out: Path) -> dict[str, Path]:
    """Draw every figure that the rows have data for.

    Args:
        rows: rows of `measure_all`.
        about: what all rows have in common, from `machine`.
        out: folder to write into.

    Returns:
        {name: path} of the figures that were written.
    """
    swept = [row for row in rows if row["model"] == SWEEP]
    figures: dict[str, Figure | None] = {}
    for name in PASSES:
        of_pass = [row for row in swept if row["pass"] == name]
        suffix = "" if name == "forward" else "_backward"
        plain = [row for row in of_pass if row["task"] == "plain"]
        figures[f"throughput{suffix}"] = throughput(plain, about, PASSES[name])
        figures[f"memory{suffix}"] = memory(of_pass, about, PASSES[name])
        of_pass = [row for row in rows if row["pass"] == name]
        figures[f"overhead{suffix}"] = overhead(of_pass, about, PASSES[name])
        figures[f"denoising_step{suffix}"] = steps(of_pass, about, PASSES[name])
    paths = {}
    for name, figure in figures.items():
        if figure is not None:
            paths[name] = out / f"{name}.png"
            figure.savefig(paths[name], dpi=DPI)
    return paths


def throughput(rows: list[Row], about: Row, passes: str) -> Figure | None:
    """Useful TFLOP/s against N, a panel for each head dim; the band is p20 to p80."""
    timed = [row for row in rows if "p50_ms" in row]
    head_dims = unique(timed, "head_dim")
    if not timed:
        return None
    figure, axes = panels(len(head_dims), f"Attention, {passes}, {about['device']}", share_y=False)
    styles = _styles(timed)
    for axis, head_dim in zip(axes, head_dims, strict=True):
        for name, style in styles.items():
            line = _line(timed, name, head_dim)
            n, tflops = [row["seqlen"] for row in line], [row["tflops"] for row in line]
            low, high = ([row["tflops"] * row["p50_ms"] / row[q] for row in line] for q in ("p80_ms", "p20_ms"))
            axis.plot(n, tflops, **style, label=name)
            axis.fill_between(n, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_title(f"head dim {head_dim}")
        axis.set_ylim(bottom=0)
        _lengths(axis, timed)
    for axis in axes[::MAX_PANELS]:
        axis.set_ylabel("useful TFLOP/s")
    _legend(figure, axes, styles)
    return figure


def memory(rows: list[Row], about: Row, passes: str) -> Figure | None:
    """MiB that a call adds against N, log-log, a panel for each task, at the head dim with most rows; dotted: N²."""
    known = [row for row in rows if row.get("peak_mib") is not None and row["peak_mib"] > 0]
    if not known:
        return None
    dims = unique(known, "head_dim")
    head_dim = max(dims, key=lambda d: (len({r["seqlen"] for r in known if r["head_dim"] == d}), d == 64))
    known = [row for row in known if row["head_dim"] == head_dim]
    tasks = unique(known, "task")
    figure, axes = panels(len(tasks), f"Memory that a call adds, {passes}, head dim {head_dim}, {about['device']}")
    styles = _styles(known)
    # The batch of the sweep becomes smaller as N grows, so memory is shown for a batch of one.
    for axis, task in zip(axes, tasks, strict=True):
        for name, style in styles.items():
            line = [row for row in _line(known, name, head_dim) if row["task"] == task]
            axis.plot([r["seqlen"] for r in line], [r["peak_mib"] / r["batch"] for r in line], **style, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        _lengths(axis, known)
        axis.set_title(TASKS[task])
        n = sorted({row["seqlen"] for row in known if row["task"] == task})
        heads = known[0]["heads"]
        axis.plot(n, [4 * heads * m**2 / 2**20 for m in n], color=GREY, linestyle=":", linewidth=1.4)
        axis.annotate("N² in float32", (n[-1], 4 * heads * n[-1] ** 2 / 2**20), color=GREY, fontsize=8,
                      xytext=(-4, 4), textcoords="offset points", ha="right")  # fmt: skip
    for axis in axes[::MAX_PANELS]:
        axis.set_ylabel("MiB per image")
    _legend(figure, axes, styles)
    return figure


def overhead(rows: list[Row], about: Row, passes: str) -> Figure | None:
    """Time that entropy and the map add: ours to our plain call, the best other implementation to torch's choice."""
    parts = [(task, found) for task in ("entropy", "map") if (found := added(rows, task))]
    if not parts:
        return None
    figure, axes = panels(
        len(parts), f"What statistics add, {passes}, {about['device']}", panel_width=6.4, share_y=False
    )
    for axis, (task, found) in zip(axes, parts, strict=True):
        keys = list(dict.fromkeys((f["model"], f["head_dim"], f["seqlen"], f["seqlen_k"], f["kind"]) for f in found))
        keys.sort(key=lambda key: (key[0] != SWEEP, key[0], key[1], key[2]))
        count, keys = len(keys), keys[:MAX_BARS]
        for i, side in enumerate(("ours", "best other")):
            color = OUR_COLORS[0] if side == "ours" else OTHER_COLORS[0]
            for j, key in enumerate(keys):
                ones = [f for f in found if f["side"] == side
                        and (f["model"], f["head_dim"], f["seqlen"], f["seqlen_k"], f["kind"]) == key]  # fmt: skip
                if not ones:
                    continue
                # Several sizes of one model can have the same shape: their mean is shown
                percent = sum(f["percent"] for f in ones) / len(ones)
                axis.barh(j + 0.4 * i - 0.2, percent, 0.38, color=color, label=side if j == 0 else None)
                at = (max(percent, 0.0), j + 0.4 * i - 0.2)
                axis.annotate(f"{round(percent):+d} %", at, fontsize=7, va="center", xytext=(3, 0),
                              textcoords="offset points")  # fmt: skip
        axis.set_yticks(range(len(keys)), [_shape(key) for key in keys], fontsize=8)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xscale("symlog", linthresh=10)
        axis.margins(x=0.12)
        axis.grid(False, axis="y")
        some = f" (the first {MAX_BARS} of {count} shapes)" if count > MAX_BARS else ""
        axis.set_title(f"time that the {task} adds to a plain call, %{some}")
        axis.set_ylim(len(keys) - 0.4, -0.6)
    figure.set_figheight(max(3.0, 1.6 + 0.36 * max(len(axis.get_yticks()) for axis in axes)))
    handles, labels = axes[0].get_legend_handles_labels()
    names = {"ours": "ours, to our plain call", "best other": "best other, to torch's plain call"}
    figure.legend(handles, [names[label] for label in labels], loc="outside lower center", ncols=2)
    return figure


def steps(rows: list[Row], about: Row, passes: str) -> Figure | None:
    """Milliseconds of attention in one denoising step: bars at one size, or lines over many sizes."""
    found = denoising_steps(rows)
    parts: dict[str, list[Row]] = {}
    for step in found:
        many = len({other["size"] for other in found if other["model"] == step["model"]}) > MAX_SIZES_AS_BARS
        parts.setdefault(step["model"] if many else f"{step['model']}, {step['size']} px", []).append(step)
    if not parts:
        return None
    figure, axes = panels(
        len(parts), f"Attention in one denoising step, {passes}, {about['device']}", height=3.8, share_y=False
    )
    for axis, (title, of_panel) in zip(axes, parts.items(), strict=True):
        sizes = unique(of_panel, "size")
        if len(sizes) > 1:
            _step_lines(axis, of_panel, sizes)
        else:
            _step_bars(axis, of_panel)
        axis.set_title(title)
    for axis in axes[::MAX_PANELS]:
        axis.set_ylabel("ms")
    handles = named_handles(axes)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
    return figure


def _step_bars(axis: Any, rows: list[Row]) -> None:
    tasks = unique(rows, "task")
    for i, (side, (color, label)) in enumerate(SIDES.items()):
        values = {step["task"]: step["ms"] for step in rows if step["side"] == side}
        x = [tasks.index(task) + 0.4 * i - 0.2 for task in values]
        bars = axis.bar(x, list(values.values()), 0.38, color=color, label=label)
        axis.bar_label(bars, [_short(ms) for ms in values.values()], fontsize=8, padding=2)
    axis.set_xticks(range(len(tasks)), [TASKS[task] for task in tasks])
    axis.margins(y=0.12)
    axis.grid(False, axis="x")


def _step_lines(axis: Any, rows: list[Row], sizes: list[str]) -> None:
    styles = {"plain": "-", "entropy": "--", "map": ":"}
    for side, (color, label) in SIDES.items():
        for task, style in styles.items():
            line = [step for step in rows if step["side"] == side and step["task"] == task]
            at = [sizes.index(step["size"]) for step in line]
            axis.plot(at, [step["ms"] for step in line], color=color, linestyle=style, marker="o", markersize=3,
                      label=f"{label}: {TASKS[task]}")  # fmt: skip
    axis.set_yscale("log")
    axis.set_xticks(range(len(sizes)), sizes, rotation=45, fontsize=8)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Color and marker of each implementation; those of this package are warm and thick."""
    names = list(dict.fromkeys(name_of(row) for row in rows))
    ours = {name_of(row) for row in rows if is_ours(row)}
    counts, styles = {True: 0, False: 0}, {}
    for name in names:
        mine = name in ours
        colors = OUR_COLORS if mine else OTHER_COLORS
        i, counts[mine] = counts[mine], counts[mine] + 1
        styles[name] = {
            "color": colors[i % len(colors)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5,
            "linewidth": 2.2 if mine else 1.3, "linestyle": "-" if mine or i < len(colors) else "--",
            "zorder": 3 if mine else 2,
        }  # fmt: skip
    return styles


def _line(rows: Sequence[Row], name: str, head_dim: object) -> list[Row]:
    return sorted(
        (row for row in rows if name_of(row) == name and row["head_dim"] == head_dim), key=lambda row: row["seqlen"]
    )


def _lengths(axis: Any, rows: Sequence[Row]) -> None:
    """A tick at every length, long ones in units of 1024."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(sorted({row["seqlen"] for row in rows})))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"))
    axis.set_xlabel("tokens N")


def _legend(figure: Figure, axes: Sequence[Any], styles: dict[str, Any]) -> None:
    found = named_handles(axes)
    names = [name for name in styles if name in found]
    figure.legend([found[name] for name in names], names, loc="outside right center", fontsize=8)


def _shape(key: tuple) -> str:
    model, head_dim, seqlen, seqlen_k, _ = key
    keys = "" if seqlen_k == seqlen else f"x{seqlen_k}"
    return f"{'' if model == SWEEP else f'{model} '}N{seqlen}{keys} d{head_dim}"
