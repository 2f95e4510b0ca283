"""The files of `evaluate cost`: cost.csv and cost.md, with the two tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_attn.evaluation.cost import MULTIDIFFUSION, RESAMPLED, CostPlan
from entropy_attn.evaluation.report import markdown_table, write_csv, write_page
from entropy_attn.profiling.plan import size_name

EXPLAINED = {
    RESAMPLED: f"`{RESAMPLED}`: generated at the training size and resampled to the size, bicubic with antialiasing.",
    MULTIDIFFUSION: f"`{MULTIDIFFUSION}`: diffusers' panorama pipeline; views of the training size overlap by 7/8.",
}


def write_cost_report(
    rows: Sequence[Mapping[str, Any]], plan: CostPlan, out: Path, title: str, about: Mapping[str, Any]
) -> dict[str, Path]:
    """Write both files; returns {name: path}.

    Args:
        rows: the rows of cost.csv.
        plan: what was measured.
        out: the folder.
        title: name of the model.
        about: device, versions and the like; columns of every row.
    """
    files = {"table": write_csv([{**row, **about} for row in rows], out / "cost.csv")}
    files["page"] = write_page(out / "cost.md", f"Time and memory: {title}", cost_page(rows, plan, about))
    return files


def cost_page(rows: Sequence[Mapping[str, Any]], plan: CostPlan, about: Mapping[str, Any]) -> list[str]:
    """The parts of cost.md."""
    facts = {"steps": plan.settings.steps, "repeats": plan.repeats, **about}
    clock = "processor time, summed over threads" if about.get("device") == "cpu" else "between two CUDA events"
    reasons: dict[str, None] = {}
    for row in rows:
        if row["not_applicable"]:
            reasons[f"{row['way']} at {row['size']}: {row['not_applicable']}"] = None
    return [
        ", ".join(f"{name}: {value}" for name, value in facts.items()) + ".",
        "One image, with its decoding.\n" + "\n".join(f"- {text}" for text in EXPLAINED.values()),
        f"## Time\n\nSeconds, {clock}: median (minimum to maximum).",
        _table(rows, plan, lambda row: f"{row['seconds']:.2f} ({row['seconds_min']:.2f} to {row['seconds_max']:.2f})"),
        f"As a multiple of `{next(iter(plan.policies))}`, paired by repeat:",
        _table(rows, plan,
               lambda row: f"{row['times_off']:.2f} ({row['times_off_min']:.2f} to {row['times_off_max']:.2f})"),
        "## Peak memory\n\nMiB at the peak, with the weights (what the generation added):",
        _table(rows, plan, lambda row: "not measured" if row["peak_mib"] is None
               else f"{row['peak_mib']:.0f} ({row['extra_mib']:.0f})"),
        "" if not reasons else "## Not applicable\n\n" + "\n".join(f"- {reason}" for reason in reasons),
    ]  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]], plan: CostPlan, cell: Any) -> str:
    """A row for each way, a column for each size."""
    by_key = {(row["size"], row["way"]): row for row in rows}
    shown = []
    for way in plan.ways:
        line: dict[str, Any] = {"": way}
        for size in map(size_name, plan.sizes):
            row = by_key[size, way]
            line[f"{size} px"] = "-" if row["not_applicable"] else cell(row)
        shown.append(line)
    return markdown_table(shown)
