"""Rows for people (rich tables) and for files (CSV)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from entropy_attn.bench.compare import by_case, choices, denoising_steps, is_ours, speeds
from entropy_attn.bench.measure import FIELDS, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTHS = {"implementation": 22, "ms": 9, "p20 - p80": 17, "TFLOP/s": 8, "+MiB": 8, "error": 5, "speed": 5}


class CsvRows:
    """A CSV file that grows by rows; what was measured stays where a later case ends the run."""

    def __init__(self, path: Path, about: Row):
        self._file: IO[str] = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, FIELDS)
        self._writer.writeheader()
        self._about = about

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.writerows({**self._about, **row} for row in rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def print_tables(rows: list[Row], about: Row) -> None:
    """Every case, `auto` against torch's own choice, and the denoising steps."""
    from rich.console import Console

    console = Console(highlight=False)
    _print_cases(console, rows, about)
    for table in (_choices_table(rows), _steps_table(rows)):
        if table.row_count:
            console.print("", table)
    for line in refusals(rows):
        console.print(line, markup=False, soft_wrap=True)


def refusals(rows: list[Row]) -> list[str]:
    """One line for each implementation and reason; the table has no room for them."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        if "p50_ms" not in row:
            key = (str(row["implementation"]), str(row["status"]))
            found[key] = found.get(key, 0) + 1
    return [f"{name} ({count} x): {status}" for (name, status), count in found.items()]


def _print_cases(console: Console, rows: list[Row], about: Row) -> None:
    """A heading and a narrow table for each case, under one header."""
    console.print(f"[bold]Attention on {about['device']}[/bold]")
    console.print(
        f"[dim]torch {about['torch']}, Triton {about['triton']}, commit {about['commit']}, {about['date']}. "
        "Medians. Error: as a part of what the gate allows. Speed: times as fast as the best competitor.[/dim]"
    )
    console.print(_narrow([f"[bold]{title}[/bold]" for title in WIDTHS]))
    for those in by_case(rows).values():
        shown = [row for row in those if "p50_ms" in row or not str(row["status"]).startswith("refused")]
        if not shown:
            continue
        console.print(f"\n{case_name(those[0])}")
        speed = speeds(those)
        lines = []
        for row in sorted(shown, key=lambda row: row.get("p50_ms", float("inf"))):
            name = f"[bold]{row['implementation']}[/bold]" if is_ours(row) else str(row["implementation"])
            if "p50_ms" in row:
                lines.append([
                    name, f"{row['p50_ms']:.4g}", f"{row['p20_ms']:.4g} - {row['p80_ms']:.4g}", f"{row['tflops']:.3g}",
                    "-" if row.get("peak_mib") is None else f"{row['peak_mib']:.1f}", f"{row['max_error']:.2f}",
                    f"{speed[row['implementation']]:.2f}" if speed else "-",
                ])  # fmt: skip
            else:
                lines.append([name, str(row["status"]).partition(":")[0], *[""] * (len(WIDTHS) - 2)])
        console.print(_narrow(*lines))


def _narrow(*lines: list[str]) -> Table:
    """Columns of the same widths in every table, for a terminal of 80."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    for title, width in WIDTHS.items():
        table.add_column(width=width, justify="left" if title == "implementation" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def case_name(row: Row) -> str:
    keys = "" if row["seqlen_k"] == row["seqlen"] else f"x{row['seqlen_k']}"
    where = " ".join(str(row[name]) for name in ("model", "size", "kind") if row[name])
    shape = f"B{row['batch']} H{row['heads']} N{row['seqlen']}{keys} d{row['head_dim']} {row['dtype']}"
    return f"{where} {shape}: {row['task']}{', forward and backward' if row['pass'] == 'both' else ''}"


def _choices_table(rows: list[Row]) -> Table:
    from rich.table import Table

    table = Table(title="auto against torch's own choice, no statistics asked for")
    table.add_column("workload")
    table.add_column("pass")
    for column in ("torch ms", "auto ms", "speed"):
        table.add_column(column, justify="right")
    for auto, torchs in choices(rows):
        keys = "" if auto["seqlen_k"] == auto["seqlen"] else f"x{auto['seqlen_k']}"
        where = " ".join(str(auto[name]) for name in ("model", "size", "kind") if auto[name])
        where += f" N{auto['seqlen']}{keys} d{auto['head_dim']}"
        cells = (f"{torchs['p50_ms']:g}", f"{auto['p50_ms']:g}", f"{torchs['p50_ms'] / auto['p50_ms']:.2f}")
        table.add_row(where, str(auto["pass"]), *cells)
    return table


def _steps_table(rows: list[Row]) -> Table:
    from rich.table import Table

    table = Table(title="Attention in one denoising step, all layers, ms")
    for column in ("model", "pass", "asked for"):
        table.add_column(column)
    for column in ("best other", "ours (auto)", "speed"):
        table.add_column(column, justify="right")
    sides: dict[tuple, dict[str, float]] = {}
    for step in denoising_steps(rows):
        key = (f"{step['model']} {step['size']}", step["pass"], step["task"])
        sides.setdefault(key, {})[str(step["side"])] = float(step["ms"])
    for (model, passes, task), ms in sides.items():
        both = len(ms) == 2
        cells = [f"{ms[side]:.4g}" if side in ms else "-" for side in ("other", "ours")]
        table.add_row(model, str(passes), str(task), *cells, f"{ms['other'] / ms['ours']:.2f}" if both else "-")
    return table
