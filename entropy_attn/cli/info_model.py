"""`entropy-attn info --model`: what routing does to each attention layer of one pipeline."""

from __future__ import annotations

import csv as csv_files
import sys
from pathlib import Path
from typing import Any

from entropy_attn.cli import options
from entropy_attn.cli.tables import Column, output_width, print_table, say

COLUMNS = (
    Column("layers", fold=True),
    Column("kind", fold=True),
    Column("heads", rank=2),
    Column("N", right=True),
    Column("text", rank=1, right=True),
    Column("T", right=True),
    Column("scale", right=True),
    Column("impl", rank=3, fold=True),
)


def model_report(
    model: str,
    size: str | None,
    scale: str,
    layers: str,
    train_size: str | None,
    text_tokens: int | None,
    frames: int,
    device: str,
    dtype: str,
    csv: Path | None,
) -> dict[str, Any]:
    """What `--json` prints; a pipeline that cannot be routed is a report with its reasons, not a refusal."""
    import torch

    from entropy_attn import Unsupported
    from entropy_attn.integrations.diffusers.survey import refusals, survey
    from entropy_attn.integrations.diffusers.target import resolve_target
    from entropy_attn.integrations.diffusers.target import train_size as stated_size
    from entropy_attn.pipelines import quiet_libraries
    from entropy_attn.pipelines.outline import outline_pipeline

    options.check_at_least("--frames", frames, 1)
    options.check_at_least("--text-tokens", text_tokens, 1)
    device = options.parse_device(device)
    if dtype not in options.DTYPES:
        raise ValueError(f"--dtype {dtype!r}: give one of {', '.join(options.DTYPES)}")
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    policy = options.parse_scale(scale)
    given = None if size is None else options.parse_size(size, "--size")
    trained = None if train_size is None else options.parse_size(train_size, "--train-size")
    quiet_libraries()
    pipe = outline_pipeline(model)
    report: dict[str, Any] = {"model": model, "pipeline": type(pipe).__name__, "scale": scale, "device": device}
    report |= {"dtype": dtype, "served": False, "size": None, "reasons": [], "layers": []}
    try:
        resolve_target(pipe)  # a pipeline that cannot be routed need not state a size
        given = given or trained or stated_size(pipe)
        found = survey(
            pipe,
            given,
            scale=policy,
            layers=layers,
            train_size=trained,
            frames=frames,
            text_tokens=text_tokens,
            device=device,
            dtype=getattr(torch, dtype),
        )
    except Unsupported as error:
        return report | {"reasons": error.reasons}
    reasons = [{"reason": reason, "layers": names} for reason, names in refusals(found)]
    rows = [layer.to_row() for layer in found]
    if csv is not None:
        with csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv_files.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    served = any(row["refused"] is None for row in rows)
    return report | {"served": served, "size": list(given), "refused": reasons, "layers": rows}


def print_model(report: dict[str, Any]) -> None:
    title = f"{report['model']}: {report['pipeline']}"
    if not report["layers"]:
        say(f"{title} is not routed: " + "; ".join(report["reasons"]))
        return
    height, width = report["size"]
    route = "torch" if report["layers"][0]["route"] == "sdpa" else "diffusers' dispatcher"
    say(f"{title} at {height}x{width}, scale {report['scale']}, {report['device']} {report['dtype']}")
    say(f"route: {route}; N are the keys, of which text, and T the picture's at training size")
    say("")
    name = str if output_width(sys.stdout) is None else _short
    rows = [
        [name(layers[0]) + (f" +{len(layers) - 1}" if len(layers) > 1 else ""), *row]
        for layers, row in _groups(report["layers"])
    ]
    print_table(COLUMNS, rows, show_all="a wider terminal, --csv or --json has them")
    for refused in report["refused"]:
        say(f"refused, {_named(refused['layers'])}: {refused['reason']}")


def _groups(rows: list[dict[str, Any]]) -> list[tuple[list[str], tuple]]:
    """Layers that are alike, in the order of the first of each."""
    groups: dict[tuple, list[str]] = {}
    for row in rows:
        kind = row["kind"] if row["text"] is None else f"{row['kind']}, text {row['text']}"
        scale = None if row["scale"] is None else f"{row['scale']:.4g}"
        scale = "own" if scale is None and row["kind"] else scale
        recorded = "" if row["impl"] == row["impl_recorded"] else f", recorded {row['impl_recorded']}"
        shown = (
            kind,
            f"{row['heads']}x{row['head_dim']}",
            row["seqlen_k"],
            row["text_tokens"],
            row["train_tokens"],
            "refused" if row["refused"] else scale,
            row["impl"] and row["impl"] + recorded,
        )
        groups.setdefault(shown, []).append(row["layer"])
    return [(layers, shown) for shown, layers in groups.items()]


def _short(layer: str) -> str:
    """A name that fits into a table: its block and its own."""
    parts = layer.split(".")
    return layer if len(parts) < 4 else ".".join(parts[:2]) + "…" + parts[-1]


def _named(layers: list[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
