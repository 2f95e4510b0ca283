"""Figures of a benchmark, from rows to PNG files; colours are safe for colour-blind readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from entropy_attn.bench.compare import added, denoising_steps, is_ours, name_of
from entropy_attn.bench.measure import Row
from entropy_attn.bench.workloads import SWEEP

OURS_COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#8c564b")  # Okabe and Ito's warm colours; the others have the cool
OTHER_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#5a5a5a", "#9a9a9a", "#003f5c", "#7fb8a4")
MARKERS = "osD^vPX*<>"
GREY = "#8a8a8a"
MAX_PANELS = 3  # side by side in one row
PASSES = {"forward": "forward", "both": "forward and backward"}
SIDES = {"ours": (OURS_COLOURS[0], "ours (auto)"), "other": (OTHER_COLOURS[0], "torch, or the best other way")}
MAX_SIZES_AS_BARS = 2
MAX_BARS = 40  # shapes in one panel
TASKS = {"plain": "plain call", "lse": "with lse", "entropy": "with entropy", "map": "with maps"}


def save_figures(rows: list[Row], about: Row, out: Path) -> dict[str, Path]:
    """Draw what the rows have enough for into the folder ``out``; returns {name: path}."""
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
            figure.savefig(paths[name], dpi=150)
    return paths


def throughput(rows: list[Row], about: Row, passes: str) -> Figure | None:
    """Useful TFLOP/s against N, a panel a head dim; the band is p20 to p80."""
    timed = [row for row in rows if "p50_ms" in row]
    head_dims = _unique(timed, "head_dim")
    if not timed:
        return None
    figure, axes = _panels(len(head_dims), f"Attention, {passes}, {about['device']}")
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
    """MiB that a call adds against N, log-log, a panel a task, at the head dim with most rows; with a line of N^2."""
    known = [row for row in rows if row.get("peak_mib") is not None and row["peak_mib"] > 0]
    if not known:
        return None
    dims = _unique(known, "head_dim")
    head_dim = max(dims, key=lambda d: (len({r["seqlen"] for r in known if r["head_dim"] == d}), d == 64))
    known = [row for row in known if row["head_dim"] == head_dim]
    tasks = _unique(known, "task")
    figure, axes = _panels(
        len(tasks), f"Memory that a call adds, {passes}, head dim {head_dim}, {about['device']}", share_y=True
    )
    styles = _styles(known)
    # The sweep's batch shrinks with N, so what counts is a batch of one.
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
        axis.set_ylabel("MiB a picture")
    _legend(figure, axes, styles)
    return figure


def overhead(rows: list[Row], about: Row, passes: str) -> Figure | None:
    """What entropy and the map add to a plain call: ours to ours, the best other way to torch's own choice."""
    panels = []
    for task in ("entropy", "map"):
        found = added(rows, task)
        if found:
            panels.append((task, found))
    if not panels:
        return None
    figure, axes = _panels(len(panels), f"What statistics add, {passes}, {about['device']}", panel_width=6.4)
    for axis, (task, found) in zip(axes, panels, strict=True):
        keys = list(dict.fromkeys((f["model"], f["head_dim"], f["seqlen"], f["seqlen_k"], f["kind"]) for f in found))
        keys.sort(key=lambda key: (key[0] != SWEEP, key[0], key[1], key[2]))
        count, keys = len(keys), keys[:MAX_BARS]
        for i, side in enumerate(("ours", "best other")):
            colour = OURS_COLOURS[0] if side == "ours" else OTHER_COLOURS[0]
            for j, key in enumerate(keys):
                ones = [f for f in found if f["side"] == side
                        and (f["model"], f["head_dim"], f["seqlen"], f["seqlen_k"], f["kind"]) == key]  # fmt: skip
                if not ones:
                    continue
                # several sizes of one model may share a shape: the mean stands for them
                percent = sum(f["percent"] for f in ones) / len(ones)
                axis.barh(j + 0.4 * i - 0.2, percent, 0.38, color=colour, label=side if j == 0 else None)
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
    """Milliseconds of attention in one denoising step: bars for a size, or lines over the sizes where they are many."""
    found = denoising_steps(rows)
    panels: dict[str, list[Row]] = {}
    for step in found:
        many = len({other["size"] for other in found if other["model"] == step["model"]}) > MAX_SIZES_AS_BARS
        panels.setdefault(step["model"] if many else f"{step['model']}, {step['size']} px", []).append(step)
    if not panels:
        return None
    figure, axes = _panels(len(panels), f"Attention in one denoising step, {passes}, {about['device']}", height=3.4)
    for axis, (title, own) in zip(axes, panels.items(), strict=True):
        sizes = _unique(own, "size")
        if len(sizes) > 1:
            _step_lines(axis, own, sizes)
        else:
            _step_bars(axis, own)
        axis.set_title(title)
    for axis in axes[::MAX_PANELS]:
        axis.set_ylabel("ms")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
    return figure


def _step_bars(axis: Any, own: list[Row]) -> None:
    tasks = _unique(own, "task")
    for i, (side, (colour, label)) in enumerate(SIDES.items()):
        values = {step["task"]: step["ms"] for step in own if step["side"] == side}
        places = [tasks.index(task) + 0.4 * i - 0.2 for task in values]
        bars = axis.bar(places, list(values.values()), 0.38, color=colour, label=label)
        axis.bar_label(bars, [_short(ms) for ms in values.values()], fontsize=8, padding=2)
    axis.set_xticks(range(len(tasks)), [TASKS[task] for task in tasks])
    axis.margins(y=0.12)
    axis.grid(False, axis="x")


def _step_lines(axis: Any, own: list[Row], sizes: list[str]) -> None:
    styles = {"plain": "-", "entropy": "--", "map": ":"}
    for side, (colour, label) in SIDES.items():
        for task, style in styles.items():
            line = [step for step in own if step["side"] == side and step["task"] == task]
            at = [sizes.index(step["size"]) for step in line]
            axis.plot(at, [step["ms"] for step in line], color=colour, linestyle=style, marker="o", markersize=3,
                      label=f"{label}: {TASKS[task]}")  # fmt: skip
    axis.set_yscale("log")
    axis.set_xticks(range(len(sizes)), sizes, rotation=45, fontsize=8)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


# -- helpers --------------------------------------------------------------------------------------------------------


def _panels(
    count: int, title: str, panel_width: float = 4.2, height: float = 3.8, share_y: bool = False
) -> tuple[Figure, list[Any]]:
    """Panels in a figure outside pyplot's global state."""
    columns = min(count, MAX_PANELS)
    lines = math.ceil(count / columns)
    figure = Figure(
        figsize=(panel_width * columns + 1.6, height * lines + 1.0), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=share_y).ravel()
    for axis in grid[count:]:
        axis.remove()
    for axis in grid[:count]:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[:count])


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each implementation, ours warm and thick."""
    names = list(dict.fromkeys(name_of(row) for row in rows))
    ours = {name_of(row) for row in rows if is_ours(row)}
    counts, styles = {True: 0, False: 0}, {}
    for name in names:
        mine = name in ours
        colours = OURS_COLOURS if mine else OTHER_COLOURS
        i, counts[mine] = counts[mine], counts[mine] + 1
        styles[name] = {
            "color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5,
            "linewidth": 2.2 if mine else 1.3, "linestyle": "-" if mine or i < len(colours) else "--",
            "zorder": 3 if mine else 2,
        }  # fmt: skip
    return styles


def _line(rows: Sequence[Row], name: str, head_dim: object) -> list[Row]:
    return sorted(
        (row for row in rows if name_of(row) == name and row["head_dim"] == head_dim), key=lambda row: row["seqlen"]
    )


def _lengths(axis: Any, rows: Sequence[Row]) -> None:
    """A tick at every length, in thousands where it is many."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(sorted({row["seqlen"] for row in rows})))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"))
    axis.set_xlabel("tokens N")


def _legend(figure: Figure, axes: Sequence[Any], styles: dict[str, Any]) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if len(handle.get_xdata()):
                found.setdefault(label, handle)
    names = [name for name in styles if name in found]
    figure.legend([found[name] for name in names], names, loc="outside right center", fontsize=8)


def _unique(rows: Sequence[Row], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))


def _shape(key: tuple) -> str:
    model, head_dim, seqlen, seqlen_k, _ = key
    keys = "" if seqlen_k == seqlen else f"x{seqlen_k}"
    return f"{'' if model == SWEEP else f'{model} '}N{seqlen}{keys} d{head_dim}"
