"""`entropy-attn info`: versions, devices, and which implementation serves what."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli import versions
from entropy_attn.cli.info_model import ModelRequest, model_report, print_model
from entropy_attn.cli.loading import DEVICE_HELP, MODEL_HELP
from entropy_attn.cli.outputs import output_table
from entropy_attn.cli.parsing import DTYPES, SCALE_HELP, SIZE_HELP
from entropy_attn.cli.refusals import refusals
from entropy_attn.cli.tables import Column, print_table, say

HEAD_DIMS = (16, 40, 64, 72, 80, 96, 128, 160, 256)
TRIED_DTYPES = ("float16", "bfloat16", "float32")
IMPLS = ("triton", "sdpa", "reference")


def info(
    model: Annotated[
        str | None, typer.Option(help=f"Report on this pipeline: {MODEL_HELP} No weights are loaded.")
    ] = None,
    size: Annotated[str | None, typer.Option(help=f"Image size: {SIZE_HELP}. Default: the training size.")] = None,
    scale: Annotated[str, typer.Option(help=f"Scale policy: {SCALE_HELP}")] = "logn",
    layers: Annotated[
        str, typer.Option(help="Layers that get the scale: self, cross, all, or a regular expression.")
    ] = "self",
    train_size: Annotated[
        str | None, typer.Option(help="Training size, for a model whose configuration does not state it.")
    ] = None,
    text_tokens: Annotated[
        int | None, typer.Option(help="Number of text tokens. Default: the usual number of the model.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Number of latent frames, for a video model.")] = 1,
    device: Annotated[str, typer.Option(help=f"Device that --model would run on: {DEVICE_HELP}")] = "auto",
    dtype: Annotated[str, typer.Option(help=f"Dtype that --model would have: one of {', '.join(DTYPES)}.")] = "auto",
    csv: Annotated[Path | None, typer.Option(help="Write the layers of --model to this .csv file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON instead of tables.")] = False,
) -> None:
    """Show versions, devices, and which implementation serves which head dim and dtype, and why others do not.

    With --model, show every attention layer of that pipeline: how it is routed, how many tokens it has, its scale,
    which implementation serves it, and what is refused and why.

    Examples:

      entropy-attn info --json

      entropy-attn info --model path/or/hub-id --size 768x768
    """
    with refusals():
        if model is not None:
            path = None if csv is None else output_table(csv)
            request = ModelRequest(model, size, scale, layers, train_size, text_tokens, frames, device, dtype)
            report = model_report(request, path)
        elif csv is not None:
            raise ValueError("--csv: expected --model with it, because it is a table of the model's layers")
        else:
            report = {"versions": versions.versions(), "devices": _devices(), "impls": _impls()}
    if as_json:
        print(json.dumps(report, indent=2))
    elif model is not None:
        print_model(report)
    else:
        _print_tables(report)


def _devices() -> list[dict[str, Any]]:
    import torch

    devices = [
        {"device": "cpu", "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "configurations measured on": _measured_on(torch.device("cuda", index)),
            }
        )
    return devices


def _measured_on(device: Any) -> str:
    """The card whose measured configurations a device takes; "no card" if it has those of the static tables."""
    from entropy_attn.kernels.common.support import device_target
    from entropy_attn.kernels.forward.measured import card_name, cards, nearest

    known = cards(device_target(device) or "")
    return nearest(card_name(device), known) if known else "no card"


def _impls() -> list[dict[str, Any]]:
    """What the library says for a call of two tokens, for every combination."""
    import torch

    from entropy_attn import unsupported_reasons

    rows = []
    for device in _devices():
        for dtype in TRIED_DTYPES:
            for head_dim in HEAD_DIMS:
                tensor = torch.zeros(1, 1, 2, head_dim, dtype=getattr(torch, dtype), device=device["device"])
                for impl in IMPLS:
                    reasons = unsupported_reasons(tensor, tensor, tensor, return_entropy=True, impl=impl)
                    rows.append(
                        {
                            "device": device["device"],
                            "dtype": dtype,
                            "head_dim": head_dim,
                            "impl": impl,
                            "serves": not reasons,
                            "reasons": list(reasons),
                        }
                    )
    return rows


def _print_tables(report: dict[str, Any]) -> None:
    versions = [[package, version or "not installed"] for package, version in report["versions"].items()]
    print_table([Column("package"), Column("version", fold=True)], versions)
    columns = [Column("impl"), Column("dtypes", fold=True), Column("serves head dims", fold=True)]
    columns += [Column("and does not", fold=True)]
    for device in report["devices"]:
        facts = ", ".join(f"{key} {value}" for key, value in device.items() if key not in ("device", "name"))
        rows = [row for row in report["impls"] if row["device"] == device["device"]]
        say("")
        print_table(
            columns, _served(rows), title=f"{device['device']}: {device['name']} ({facts}); attention with entropy"
        )
        for line in _refusal_lines(rows):
            say(line)


def _served(rows: list[dict[str, Any]]) -> list[list[str | None]]:
    """A row for each implementation and set of dtypes that it serves in the same way."""
    dims: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for row in rows:
        dims.setdefault((row["impl"], row["dtype"]), ([], []))[not row["serves"]].append(str(row["head_dim"]))
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (impl, dtype), (served, refused) in dims.items():
        alike.setdefault((impl, " ".join(served), " ".join(refused)), []).append(dtype)
    return [
        [impl, " ".join(dtypes), served or None, refused or None] for (impl, served, refused), dtypes in alike.items()
    ]


def _refusal_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each reason, with the dtypes and head dims that it applies to."""
    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        for reason in row["reasons"]:
            cases.setdefault((row["impl"], reason), []).append(row)
    lines = []
    for (impl, reason), refused in cases.items():
        dtypes = [dtype for dtype in TRIED_DTYPES if any(row["dtype"] == dtype for row in refused)]
        dims = [str(dim) for dim in HEAD_DIMS if any(row["head_dim"] == dim for row in refused)]
        where = [*([] if len(dtypes) == len(TRIED_DTYPES) else dtypes), *([] if len(dims) == len(HEAD_DIMS) else dims)]
        lines.append(f"not {impl}{' for ' + ', '.join(where) if where else ''}: {reason}")
    return lines
