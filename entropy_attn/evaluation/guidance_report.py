"""The files of `evaluate guidance`: guidance.csv, repairs.csv, questions.csv, images.csv, guidance.md, images.png."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropy_attn.evaluation.guidance import GuidanceResult
from entropy_attn.evaluation.guidance_metrics import Row
from entropy_attn.evaluation.guidance_plan import OFF, ORACLE, OTHER_SEED, RANDOM
from entropy_attn.evaluation.report import markdown_table, shown, write_csv, write_page
from entropy_attn.evaluation.sampling import load_image
from entropy_attn.evaluation.statistics import Interval
from entropy_attn.profiling.plan import size_name

SHOWN = 4  # prompts on the sheet
SHARES = ("presence", "binding", "exact count")  # in percent
CONTROLS = {
    OTHER_SEED: "other noise, no guidance: what chance changes",
    RANDOM: "as long as the update of the method at the same step, in a random direction: what any change does",
    ORACLE: "guided to a layout that fits the caption: the most that maps can do in this model",
}


def write_report(result: GuidanceResult, out: Path, title: str, about: Mapping[str, Any]) -> dict[str, Path]:
    """Write all files; returns {name: path}.

    Args:
        result: what was measured.
        out: the folder.
        title: name of the model.
        about: further facts for the head of the page, such as the device.
    """
    tables = {"table": result.rows, "repairs": result.repairs, "questions": result.kinds, "images": result.images}
    names = {"table": "guidance.csv", "repairs": "repairs.csv", "questions": "questions.csv", "images": "images.csv"}
    files = {name: write_csv(rows, out / names[name]) for name, rows in tables.items() if rows}
    files["sheet"] = _sheet(result, out / "images.png", title)
    files["page"] = write_page(out / "guidance.md", f"Guidance: {title}", page_parts(result, about))
    return files


def page_parts(result: GuidanceResult, about: Mapping[str, Any]) -> list[str]:
    """The parts of guidance.md."""
    plan = result.plan
    facts = {"prompts": f"{len(plan.prompts)} of {plan.prompts.name}", "repetitions": len(plan.seeds),
             "size": size_name(plan.size), "steps": plan.settings.steps,
             "guidance scale": plan.settings.guidance_scale or "default", **about}  # fmt: skip
    controls = [f"- *{name}*: {what}." for name, what in CONTROLS.items() if any(a.startswith(name) for a in plan.arms)]
    parts = [
        ", ".join(f"{name}: {value}" for name, value in facts.items()) + ".",
        f"In brackets: 95 % intervals over prompts. Differences are to `{OFF}`, without guidance, with the "
        "same prompts and noise; p is McNemar's exact test over images, adjusted for the arms by Holm. A method shows "
        "an effect only where it differs from its controls, too:",
        "\n".join(controls),
        "## Scores",
        _table(result.rows, "value"),
        "Difference:",
        _table([row for row in result.rows if row["arm"] != OFF], "difference"),
    ]
    if result.repairs:
        parts += [
            "## Repair and damage",
            f"Of the images that fail under `{OFF}`, the share that succeeds; of those that succeed, the share that "
            "fails. In brackets: Wilson's 95 % interval. Any change of the latents repairs some failures: compare with "
            "the controls.",
            _repairs(result.repairs),
        ]
    if result.kinds:
        parts += ["## Accuracy by kind of question", _kinds(result.kinds)]
    notes = [*_guided_notes(result), *result.notes]
    parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
    return parts


def _table(rows: list[Row], kind: str) -> str:
    """A row for each arm, a column for each metric."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    by_arm: dict[str, Row] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {"arm": row["arm"]})[_heading(row["metric"])] = _cell(row, kind)
    return markdown_table(list(by_arm.values()), ["arm", *map(_heading, metrics)])


def _heading(metric: str) -> str:
    return f"{metric}, %" if metric in SHARES else metric


def _cell(row: Row, kind: str) -> str | None:
    found = Interval(row[kind], row[f"{kind}_low"], row[f"{kind}_high"])
    share = row["metric"] in SHARES
    text = shown(found, 1 if share else 3, signed=kind == "difference", factor=100.0 if share else 1.0)
    tested = kind == "difference" and row["p_holm"] == row["p_holm"]
    return f"{text}, p = {row['p_holm']:.2g}" if tested and text is not None else text


def _repairs(rows: list[Row]) -> str:
    table = []
    for row in rows:
        shares = [Interval(*(row[f"{n}_share{end}"] for end in ("", "_low", "_high"))) for n in ("repaired", "damaged")]
        repaired, damaged = (shown(share, 0, factor=100.0) for share in shares)
        table.append({
            "metric": row["metric"], "arm": row["arm"],
            "repaired": f"{row['repaired']} of {row['failed']}" + (f": {repaired} %" if repaired else ""),
            "damaged": f"{row['damaged']} of {row['succeeded']}" + (f": {damaged} %" if damaged else ""),
        })  # fmt: skip
    return markdown_table(table)


def _kinds(rows: list[Row]) -> str:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    by_kind: dict[str, Row] = {}
    for row in rows:
        line = by_kind.setdefault(row["kind"], {"kind": row["kind"] or "-", "questions": row["questions"]})
        line[row["arm"]] = f"{row['accuracy']:.3f}"
    return markdown_table(list(by_kind.values()), ["kind", "questions", *arms])


def _guided_notes(result: GuidanceResult) -> list[str]:
    steps = result.plan.settings.steps
    found = []
    for name in result.plan.controls:
        guidance = result.plan.arms[name].guidance
        guided = sum(step < steps for step in guidance.steps)
        half = "" if 2 * guided <= steps + 1 else "; the papers guide the first half"
        found.append(f"`{name}`: {guided} of {steps} steps are guided{half}.")
    return found


def _sheet(result: GuidanceResult, path: Path, title: str) -> Path:
    from entropy_attn.plots.images import sheet_of_arms

    plan, store = result.plan, result.stores["images"]
    chosen = range(min(SHOWN, len(plan.prompts)))
    pictures: dict[str, list[Any]] = {}
    for name, part in plan.parts().items():
        if part.seed == plan.seeds[0]:
            for index in part.indices:
                if index in chosen:
                    pictures.setdefault(part.arm, []).append(load_image(store.path(name), index))
    figure = sheet_of_arms(pictures, [plan.prompts.items[i].text for i in chosen], f"The first images by arm, {title}")
    figure.savefig(path, dpi=110)
    return path
