"""`entropy-attn bench`: what attention, its entropy and its maps cost on this machine, beside other implementations."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli.loading import DEVICE_HELP, Loading
from entropy_attn.cli.outputs import output_folder, output_table
from entropy_attn.cli.parsing import SIZE_HELP, check_dtype, parse_choices, parse_device, parse_list, parse_size
from entropy_attn.cli.progress import progress_bar
from entropy_attn.cli.refusals import refusals

EXIT_WRONG = 1

EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn bench\n\n"
    "  entropy-attn bench --model sdxl --size 2048 --tasks plain,entropy --csv sdxl.csv --out sdxl/\n\n"
    "  entropy-attn bench --preset full --out bench/\n"
)


def bench(
    preset: Annotated[
        str, typer.Option(help="How much to measure: quick, paper or full. On a CPU all three are smaller.")
    ] = "quick",
    model: Annotated[
        str | None,
        typer.Option(
            help="Measure only the attention calls of this model: sd15, sd21, sdxl, pixart, sd3, sd35-large, flux, "
            "wan-1.3b, wan-14b, 'shapes', a diffusers folder or a Hub id."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help=f"Image size for --model: {SIZE_HELP}. Default: the training size.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Some of plain, lse, entropy, map, separated by commas. Default: the preset's.")
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(help="forward, both (forward and backward), or forward,both. Default: the preset's."),
    ] = None,
    implementations: Annotated[
        str | None, typer.Option(help="Names of implementations, separated by commas. Default: the preset's.")
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, float16 or bfloat16. auto is bfloat16 on a GPU and float32 on a CPU.")
    ] = "auto",
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this .csv file as they are measured.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.csv and the figures; created if it is missing.")
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="Commit to name in the rows, if the package is not in a git checkout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of tables.")] = False,
) -> None:
    with refusals():
        request = _parse(preset, model, size, tasks, passes, implementations, device, dtype)
        paths = [] if csv is None else [output_table(csv)]
        paths += [] if out is None else [output_folder(out) / "bench.csv"]
        about, rows = _run(request, commit, paths)
        files = {} if out is None else _draw(rows, about, out)
    _print(rows, about, out, csv, files, as_json)
    _exit_if_wrong(rows)


bench.__doc__ = (
    "Time attention, its entropy and its maps beside other implementations. Results are checked before they are timed."
    f"\n\n{EXAMPLE}"
)


@dataclass(frozen=True)
class Request:
    """What to measure: the cases, on which device, with which implementations (None: all)."""

    device: Any
    cases: list[Any]
    implementations: Sequence[str] | None


def _parse(
    preset: str,
    model: str | None,
    size: str | None,
    tasks: str | None,
    passes: str | None,
    implementations: str | None,
    device: str,
    dtype: str,
) -> Request:
    import torch

    from entropy_attn.bench import presets
    from entropy_attn.bench.cases import cases
    from entropy_attn.bench.implementations.contract import PASSES, TASKS, Ask
    from entropy_attn.bench.implementations.registry import contenders

    check_dtype(dtype)
    if size is not None and model is None:
        raise ValueError(f"--size: expected --model with it, got --size {size} alone")
    where = torch.device(parse_device(device))
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    chosen = presets.preset(preset, where.type)
    asked = parse_choices("--tasks", tasks, TASKS) or chosen.tasks
    passed = parse_choices("--passes", passes, PASSES) or chosen.passes
    names = chosen.implementations
    if implementations is not None:
        names = tuple(parse_list("--implementations", implementations))
    contenders(Ask(), names)  # refuses unknown names before anything is loaded
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    workloads = list(chosen.workloads()) if model is None else _model_workloads(model, size, str(where))
    found = [
        case for case in cases(workloads, asked, passed, [getattr(torch, dtype)]) if contenders(case.ask, names)
    ]  # fmt: skip
    if not found:
        raise ValueError(
            f"nothing to measure: no workload and implementation chosen here has any of the tasks {', '.join(asked)}"
        )
    return Request(where, found, names)


def _model_workloads(model: str, size: str | None, device: str) -> list[Any]:
    from entropy_attn.bench.workloads import MODELS, workloads

    wanted = None if size is None else parse_size(size)
    if model in MODELS:
        return workloads(model, wanted)
    if "/" not in model and model != "shapes" and not Path(model).exists():
        raise ValueError(
            f"--model: expected one of {', '.join(MODELS)}, 'shapes', a diffusers folder or a Hub id, got {model!r}"
        )
    pipe, _ = Loading(model=model, device=device).load()
    from entropy_attn.bench.from_pipeline import pipeline_workloads
    from entropy_attn.pipelines import check_size, train_size

    wanted = wanted or train_size(pipe)
    check_size(pipe, wanted)
    return pipeline_workloads(pipe, Path(model).name or model, wanted)


def _run(request: Request, commit: str | None, paths: list[Path]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What all rows have in common, and the rows; refuses where no implementation could be measured."""
    from entropy_attn.bench.machine import machine

    about = machine(request.device, commit)
    rows = _measure(request, about, paths)
    if not any("p50_ms" in row or _is_wrong(row) for row in rows):
        reasons = {f"{row['implementation']}: {row['status']}" for row in rows}
        raise ValueError(f"nothing could be measured: {'; '.join(sorted(reasons)) or 'no implementation does this'}")
    return about, rows


def _measure(request: Request, about: dict[str, str], paths: list[Path]) -> list[dict[str, Any]]:
    from entropy_attn.bench.measure import DeviceLost, measure_all
    from entropy_attn.bench.table import CsvRows

    files = [CsvRows(path, about) for path in paths]
    rows: list[dict[str, Any]] = []
    try:
        with progress_bar() as progress:
            task = progress.add_task("measuring", total=len(request.cases))

            def on_case(case: Any) -> None:
                progress.update(task, description=case.label)

            for _, of_case in measure_all(request.cases, request.device, request.implementations, on_case):
                rows += of_case
                for file in files:
                    file.write(of_case)
                progress.update(task, advance=1)
    except DeviceLost as lost:
        print(f"entropy-attn: the device is lost; the remaining cases are not measured: {lost}", file=sys.stderr)
    finally:
        for file in files:
            file.close()
    return rows


def _draw(rows: list[dict[str, Any]], about: dict[str, str], out: Path) -> dict[str, Path]:
    from entropy_attn.plots.benchmark import save_figures

    return {"rows": out / "bench.csv", **save_figures(rows, about, out)}


def _print(
    rows: list[dict[str, Any]],
    about: dict[str, str],
    out: Path | None,
    csv: Path | None,
    files: dict[str, Path],
    as_json: bool,
) -> None:
    if as_json:
        from entropy_attn.bench.compare import denoising_steps

        report = {"about": about, "rows": rows, "denoising_steps": denoising_steps(rows)}
        print(json.dumps({**report, "files": {name: str(path) for name, path in files.items()}}, indent=2))
        return
    from entropy_attn.cli.bench_tables import print_bench

    print_bench(rows, about)
    if csv is not None:
        print(f"\nWritten to {csv.resolve()}")
    if out is not None:
        print(f"\nWritten to {out.resolve()}:", *(f"  {path.name}" for path in files.values()), sep="\n")


def _exit_if_wrong(rows: list[dict[str, Any]]) -> None:
    from entropy_attn.bench.measure import LOST

    wrong = [f"{row['implementation']}: {row['status']}" for row in rows if _is_wrong(row)]
    if wrong:
        print(f"entropy-attn: {len(wrong)} wrong result(s), which are not timed: {wrong[0]}", file=sys.stderr)
    if wrong or any(str(row["status"]).startswith(LOST) for row in rows):
        raise typer.Exit(EXIT_WRONG)


def _is_wrong(row: dict[str, Any]) -> bool:
    return str(row["status"]).startswith("wrong")
