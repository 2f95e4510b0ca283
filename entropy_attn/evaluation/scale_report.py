"""The files of `evaluate scale`: scale.csv, images.csv, scale.md, images.png."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_attn.evaluation.report import markdown_table, shown, write_csv, write_page
from entropy_attn.evaluation.sampling import image_name, load_image
from entropy_attn.evaluation.scale import ScaleResult
from entropy_attn.evaluation.scale_metrics import Row
from entropy_attn.evaluation.statistics import Interval
from entropy_attn.profiling.plan import size_name

SHOWN = 3  # prompts on the sheet

# Title: {metric: (heading, digits, factor)}
GROUPS: dict[str, dict[str, tuple[str, int, float]]] = {
    "Distance to the real images": {
        "FID": ("FID", 2, 1.0),
        "KID": ("1000 KID", 2, 1000.0),
        "precision": ("precision", 3, 1.0),
        "recall": ("recall", 3, 1.0),
    },
    "Agreement with the prompt": {"CLIP cosine": ("CLIP cosine", 4, 1.0)},
    "Objects, by the exact checker of shapes": {
        "presence": ("every object present", 3, 1.0),
        "exact count": ("exact count", 3, 1.0),
        "binding": ("no wrong object", 3, 1.0),
        "count error": ("count error", 2, 1.0),
        "found": ("objects found", 2, 1.0),
    },
    "Denoising loss of known scenes": {},
}
EXPLAINED = {
    "Distance to the real images": (
        "KID and FID: lower is better. Both use the given network, so they can be compared with published numbers only "
        "if that is the usual Inception-v3. KID is unbiased and can be negative."
    ),
    "Agreement with the prompt": (
        "Cosine of image and text embedding; torchmetrics' CLIPScore is 100 times this, CLIP-S 2.5 times."
    ),
    "Objects, by the exact checker of shapes": (
        "Shares of images, and numbers of objects per image; count error is the mean of |found − requested|."
    ),
    "Denoising loss of known scenes": (
        "Mean squared error of the prediction at timestep t of 1000; objects have the size of the training images. "
        "Differences are relative, in percent: negative is better."
    ),
}


def write_report(result: ScaleResult, out: Path, title: str, about: Mapping[str, Any]) -> dict[str, Path]:
    """Write all files; returns {name: path}.

    Args:
        result: what was measured.
        out: the folder.
        title: name of the model.
        about: further facts for the head of the page, such as versions.
    """
    files = {"table": write_csv(result.rows, out / "scale.csv"), "images": write_csv(result.images, out / "images.csv")}
    files["sheet"] = _sheet(result, out / "images.png", title)
    files["page"] = write_page(out / "scale.md", f"Scale policies: {title}", page_parts(result, about))
    return files


def page_parts(result: ScaleResult, about: Mapping[str, Any]) -> list[str]:
    """The parts of scale.md."""
    plan, settings = result.plan, result.plan.settings
    facts = {"prompts": len(plan.prompts), "repetitions": len(plan.seeds), "steps": settings.steps,
             "guidance scale": "default" if settings.guidance_scale is None else f"{settings.guidance_scale:g}",
             **about}  # fmt: skip
    parts = [
        ", ".join(f"{name}: {value}" for name, value in facts.items()) + ".",
        "In brackets: 95 % intervals over prompts (bootstrap; Wilson's and Newcombe's for shares). Differences are to "
        f"`{plan.baseline}`, the model's default scale, with the same prompts and noise.",
    ]
    for title, metrics in GROUPS.items():
        names = {row["metric"] for row in result.rows}
        chosen = {name: as_shown for name, as_shown in metrics.items() if name in names}
        if title.startswith("Denoising"):
            chosen = {row["metric"]: (row["metric"], 4, 1.0) for row in result.rows if row["metric"].startswith("loss")}
        if chosen:
            parts += [f"## {title}", EXPLAINED[title], table(result, chosen), "Difference:", changes(result, chosen)]
    if result.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in result.notes))
    return parts


def table(result: ScaleResult, metrics: Mapping[str, tuple[str, int, float]]) -> str:
    """The values: a row for each size and policy."""
    by_key = _by_key(result.rows)
    rows = []
    for size in result.plan.sizes:
        for policy in result.plan.policies:
            row: Row = {"size": size_name(size), "policy": policy}
            for metric, (heading, digits, factor) in metrics.items():
                found = by_key.get((size_name(size), policy, metric))
                value = None if found is None else Interval(found["value"], found["low"], found["high"])
                row[heading] = shown(value, digits, factor=factor)
            rows.append(row)
    return markdown_table(rows)


def changes(result: ScaleResult, metrics: Mapping[str, tuple[str, int, float]]) -> str:
    """The differences to the default scale: a row for each size and other policy."""
    by_key = _by_key(result.rows)
    rows = []
    for size in result.plan.sizes:
        for policy in result.plan.policies:
            if policy == result.plan.baseline:
                continue
            row: Row = {"size": size_name(size), "policy": policy}
            for metric, (heading, digits, factor) in metrics.items():
                row[heading] = _change(by_key.get((size_name(size), policy, metric)), digits, factor)
            rows.append(row)
    return markdown_table(rows) if rows else "no other policy"


def _change(found: Row | None, digits: int, factor: float) -> str | None:
    if found is None or found["difference"] is None or math.isnan(found["difference"]):
        return None
    value = Interval(found["difference"], found["difference_low"], found["difference_high"])
    if found["difference_is"] == "relative":
        return f"{shown(value, 2, signed=True, factor=100)} %"
    text = str(shown(value, digits, signed=True, factor=factor))
    return text if found["p_holm"] is None else f"{text}, p = {found['p_holm']:.2g}"


def _by_key(rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    return {(row["size"], row["policy"], row["metric"]): row for row in rows}


def _sheet(result: ScaleResult, path: Path, title: str) -> Path:
    from entropy_attn.plots.images import sheet_of_sizes

    plan, store = result.plan, result.stores["images"]
    chosen = range(min(SHOWN, len(plan.prompts)))
    images: dict[tuple[tuple[int, int], str], list[Any]] = {}
    for name, part in plan.parts().items():
        if part.seed == plan.seeds[0]:
            for index in part.indices:
                if index in chosen and (store.path(name) / image_name(index)).is_file():
                    images.setdefault((part.size, part.policy), []).append(load_image(store.path(name), index))
    figure = sheet_of_sizes(
        images, [plan.prompts[index] for index in chosen], title=f"The first images by size and scale, {title}"
    )
    figure.savefig(path, dpi=110)
    return path
