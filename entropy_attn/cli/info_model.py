"""`entropy-attn info --model`: what routing does to each attention layer of one pipeline."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_attn.cli.parsing import check_at_least, check_dtype, parse_device, parse_scale, parse_size
from entropy_attn.cli.tables import Column, output_width, print_table, say
from entropy_attn.table_files import write_table

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


@dataclass(frozen=True)
class ModelRequest:
    """The options of `info --model`, as they were given."""

    model: str
    size: str | None = None
    scale: str = "logn"
    layers: str = "self"
    train_size: str | None = None
    text_tokens: int | None = None
    frames: int = 1
    device: str = "auto"
    dtype: str = "auto"


def model_report(request: ModelRequest, csv: Path | None = None) -> dict[str, Any]:
    """What `--json` prints; a pipeline that cannot be routed is a report with its reasons, not a refusal."""
    import torch

    from entropy_attn import Unsupported
    from entropy_attn.integrations.diffusers.survey import refusals, survey
    from entropy_attn.integrations.diffusers.target import resolve_target
    from entropy_attn.integrations.diffusers.target import train_size as stated_size
    from entropy_attn.pipelines import quiet_libraries
    from entropy_attn.pipelines.outline import outline_pipeline

    check_at_least("--frames", request.frames, 1)
    check_at_least("--text-tokens", request.text_tokens, 1)
    device, dtype = parse_device(request.device), check_dtype(request.dtype)
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    policy = parse_scale(request.scale)
    size = None if request.size is None else parse_size(request.size)
    trained = None if request.train_size is None else parse_size(request.train_size, "--train-size")
    quiet_libraries()
    with warnings.catch_warnings():
        # Deprecations inside the libraries are no use to a user of the command line
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        pipe = outline_pipeline(request.model)
    report: dict[str, Any] = {"model": request.model, "pipeline": type(pipe).__name__, "scale": request.scale}
    report |= {"device": device, "dtype": dtype, "served": False, "size": None, "reasons": [], "layers": []}
    try:
        resolve_target(pipe)  # a pipeline that cannot be routed need not state a size
        size = size or trained or stated_size(pipe)
        found = survey(
            pipe,
            size,
            scale=policy,
            layers=request.layers,
            train_size=trained,
            frames=request.frames,
            text_tokens=request.text_tokens,
            device=device,
            dtype=getattr(torch, dtype),
        )
    except Unsupported as error:
        return report | {"reasons": error.reasons}
    refused = [{"reason": reason, "layers": names} for reason, names in refusals(found)]
    rows = [layer.to_row() for layer in found]
    if csv is not None:
        write_table(csv, list(rows[0]), [list(row.values()) for row in rows])
    served = any(row["refused"] is None for row in rows)
    return report | {"served": served, "size": list(size), "refused": refused, "layers": rows}


def print_model(report: dict[str, Any]) -> None:
    title = f"{report['model']}: {report['pipeline']}"
    if not report["layers"]:
        say(f"{title} is not routed: " + "; ".join(report["reasons"]))
        return
    height, width = report["size"]
    route = "torch" if report["layers"][0]["route"] == "sdpa" else "diffusers' dispatcher"
    say(f"{title} at {height}x{width}, scale {report['scale']}, {report['device']} {report['dtype']}")
    say(f"route: {route}; N: keys; text: text tokens among them; T: image tokens at the training size")
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
    """Layers with the same row, in the order in which each row first appears."""
    groups: dict[tuple, list[str]] = {}
    for row in rows:
        kind = row["kind"] if row["text"] is None else f"{row['kind']}, text {row['text']}"
        scale = None if row["scale"] is None else f"{row['scale']:.4g}"
        scale = "default" if scale is None and row["kind"] else scale
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
    """A name that fits into a table: its block and its last part."""
    parts = layer.split(".")
    return layer if len(parts) < 4 else ".".join(parts[:2]) + "…" + parts[-1]


def _named(layers: list[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
