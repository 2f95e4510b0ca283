"""The tables of `entropy-attn bench`: every case, `auto` against torch's choice, and the denoising steps."""

from __future__ import annotations

from entropy_attn.bench.compare import by_case, choices, denoising_steps, is_ours, speeds
from entropy_attn.bench.measure import Row
from entropy_attn.bench.table import case_name, refusals
from entropy_attn.cli.tables import Column, print_sections, print_table, say

CASES = (
    Column("implementation", fold=True),
    Column("ms", right=True),
    Column("p20 - p80", rank=2, right=True),
    Column("TFLOP/s", rank=3, right=True),
    Column("+MiB", rank=1, right=True),
    Column("error", rank=4, right=True),
    Column("speed", right=True),
)
CHOICES = (
    Column("workload", fold=True),
    Column("pass", rank=1),
    Column("torch ms", right=True),
    Column("auto ms", right=True),
    Column("speed", right=True),
)
STEPS = (
    Column("model", fold=True),
    Column("pass"),
    Column("task"),
    Column("best other", right=True),
    Column("ours (auto)", right=True),
    Column("speed", right=True),
)
SHOW_ALL = "a wider terminal, --csv or --json shows them"


def print_bench(rows: list[Row], about: Row) -> None:
    """Print the tables of rows from `measure_all`, and why some implementations have no time."""
    say(f"Attention on {about['device']}", "bold")
    say(
        f"torch {about['torch']}, Triton {about['triton']}, commit {about['commit']}, {about['date']}. Medians. "
        "Error: relative to what the check allows. Speed: relative to the best competitor; 2 is twice as fast.\n",
        "dim",
    )
    sections, ours = _cases(rows)
    print_sections(CASES, sections, bold=ours, show_all=SHOW_ALL)
    for title, columns, lines in (
        ("auto against torch's own choice, calls without statistics", CHOICES, _choices(rows)),
        ("Attention in one denoising step, all layers, ms", STEPS, _steps(rows)),
    ):
        if lines:
            say("")
            print_table(columns, lines, title=title, show_all=SHOW_ALL)
    for line in refusals(rows):
        say(line)


def _cases(rows: list[Row]) -> tuple[dict[str, list[list[object]]], dict[str, list[int]]]:
    """{case: lines}, the fastest first, and the indices of the lines of this package."""
    sections: dict[str, list[list[object]]] = {}
    ours: dict[str, list[int]] = {}
    for case in by_case(rows).values():
        shown = [row for row in case if "p50_ms" in row or not str(row["status"]).startswith("refused")]
        if not shown:
            continue
        shown.sort(key=lambda row: row.get("p50_ms", float("inf")))
        speed, name = speeds(case), case_name(case[0])
        sections[name] = [_line(row, speed) for row in shown]
        ours[name] = [index for index, row in enumerate(shown) if is_ours(row)]
    return sections, ours


def _line(row: Row, speed: dict[str, float]) -> list[object]:
    if "p50_ms" not in row:
        return [row["implementation"], str(row["status"]).partition(":")[0], *[""] * (len(CASES) - 2)]
    return [
        row["implementation"],
        f"{row['p50_ms']:.4g}",
        f"{row['p20_ms']:.4g} - {row['p80_ms']:.4g}",
        f"{row['tflops']:.3g}",
        None if row.get("peak_mib") is None else f"{row['peak_mib']:.1f}",
        f"{row['max_error']:.2f}",
        f"{speed[row['implementation']]:.2f}" if speed else None,
    ]


def _choices(rows: list[Row]) -> list[list[object]]:
    lines: list[list[object]] = []
    for auto, torchs in choices(rows):
        keys = "" if auto["seqlen_k"] == auto["seqlen"] else f"x{auto['seqlen_k']}"
        where = " ".join(str(auto[name]) for name in ("model", "size", "kind") if auto[name])
        where += f" N{auto['seqlen']}{keys} d{auto['head_dim']}"
        times = f"{torchs['p50_ms']:g}", f"{auto['p50_ms']:g}", f"{torchs['p50_ms'] / auto['p50_ms']:.2f}"
        lines.append([where, auto["pass"], *times])
    return lines


def _steps(rows: list[Row]) -> list[list[object]]:
    sides: dict[tuple, dict[str, float]] = {}
    for step in denoising_steps(rows):
        key = (f"{step['model']} {step['size']}", step["pass"], step["task"])
        sides.setdefault(key, {})[str(step["side"])] = float(step["ms"])
    lines: list[list[object]] = []
    for key, ms in sides.items():
        times = (f"{ms[side]:.4g}" if side in ms else None for side in ("other", "ours"))
        lines.append([*key, *times, f"{ms['other'] / ms['ours']:.2f}" if len(ms) == 2 else None])
    return lines
