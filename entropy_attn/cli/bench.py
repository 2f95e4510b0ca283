"""`entropy-attn bench`: what attention, its entropy and its maps cost here, beside what else is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli import options

EXIT_WRONG = 1

EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn bench\n\n"
    "  entropy-attn bench --model sdxl --size 2048 --tasks plain,entropy --csv sdxl.csv --out sdxl/\n\n"
    "  entropy-attn bench --preset full --out bench/\n"
)
DTYPES = ("auto", "bfloat16", "float16", "float32")


def bench(
    preset: Annotated[str, typer.Option(help="How much: quick, paper or full; a CPU has smaller ones.")] = "quick",
    model: Annotated[
        str | None,
        typer.Option(
            help="Only this model's calls: sd15, sd21, sdxl, pixart, sd3, sd35-large, flux, wan-1.3b, wan-14b, "
            "'shapes', or a diffusers folder or Hub id."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help=f"With --model: {options.SIZE_HELP}; by default the training size.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Of plain, lse, entropy, map, by commas.")] = None,
    passes: Annotated[str | None, typer.Option(help="Of forward, both (forward and backward), by commas.")] = None,
    implementations: Annotated[str | None, typer.Option(help="Only these, by commas; by default the preset's.")] = None,
    device: Annotated[str, typer.Option(help=options.DEVICE_HELP)] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES) + ".")] = "auto",
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this .csv file as they come.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.csv and the figures; made if missing.")] = None,
    commit: Annotated[
        str | None, typer.Option(help="The commit that the rows name, where the package lies in no git checkout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of tables.")] = False,
) -> None:
    with options.refusals():
        import torch

        from entropy_attn.bench import presets
        from entropy_attn.bench.cases import cases
        from entropy_attn.bench.implementations.contract import PASSES, TASKS, Ask
        from entropy_attn.bench.implementations.registry import contenders
        from entropy_attn.bench.machine import machine
        from entropy_attn.bench.measure import LOST

        if dtype not in DTYPES:
            raise ValueError(f"--dtype {dtype!r}: give one of {', '.join(DTYPES)}")
        if size is not None and model is None:
            raise ValueError("--size is of a model's picture: give --model too")
        where = torch.device(options.parse_device(device))
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", torch.cuda.current_device())
        chosen = presets.preset(preset, where.type)
        wanted_tasks = _some("--tasks", tasks, TASKS) or chosen.tasks
        wanted_passes = _some("--passes", passes, PASSES) or chosen.passes
        names = chosen.implementations if implementations is None else options.parse_list(
            "--implementations", implementations
        )  # fmt: skip
        contenders(Ask(), names)  # refuses unknown names before anything is made
        if csv is not None:
            options.output_table(csv)
        if out is not None:
            options.output_folder(out)
        dtype = ("bfloat16" if where.type == "cuda" else "float32") if dtype == "auto" else dtype
        shapes = list(chosen.workloads()) if model is None else _model_workloads(model, size, str(where))
        todo = list(cases(shapes, wanted_tasks, wanted_passes, [getattr(torch, dtype)]))
        todo = [case for case in todo if contenders(case.ask, names)]
        if not todo:
            raise ValueError(f"nothing to measure: nothing of this is asked for {', '.join(wanted_tasks)}")
        about = machine(where, commit)
        rows = _measure(todo, where, names, about, [p for p in (csv, out and out / "bench.csv") if p])
        if not any("p50_ms" in row or str(row["status"]).startswith("wrong") for row in rows):
            reasons = {f"{row['implementation']}: {row['status']}" for row in rows}
            raise ValueError(
                f"nothing could be measured: {'; '.join(sorted(reasons)) or 'no implementation does this'}"
            )
        files: dict[str, Path] = {}
        if out is not None:
            from entropy_attn.plots.benchmark import save_figures

            files = {"rows": out / "bench.csv", **save_figures(rows, about, out)}
    if as_json:
        from entropy_attn.bench.compare import denoising_steps

        report = {"about": about, "rows": rows, "denoising_steps": denoising_steps(rows)}
        print(json.dumps({**report, "files": {name: str(path) for name, path in files.items()}}, indent=2))
    else:
        from entropy_attn.cli.bench_tables import print_bench

        print_bench(rows, about)
        if out is not None:
            print(f"\nWritten to {out.resolve()}:", *(f"  {path.name}" for path in files.values()), sep="\n")
    wrong = [f"{row['implementation']}: {row['status']}" for row in rows if str(row["status"]).startswith("wrong")]
    if wrong:
        print(f"entropy-attn: {len(wrong)} wrong result(s), which have no time: {wrong[0]}", file=sys.stderr)
        raise typer.Exit(EXIT_WRONG)
    if any(str(row["status"]).startswith(LOST) for row in rows):
        raise typer.Exit(EXIT_WRONG)


bench.__doc__ = (
    f"Time attention, its entropy and its maps against what else there is; a wrong result has no time.\n\n{EXAMPLE}"
)


def _some(option: str, given: str | None, known: Sequence[str]) -> tuple[str, ...] | None:
    if given is None:
        return None
    parts = options.parse_list(option, given)
    unknown = next((part for part in parts if part not in known), None)
    if unknown is not None:
        raise ValueError(f"{option}: unknown {unknown!r}: give some of {', '.join(known)}")
    return tuple(parts)


def _model_workloads(model: str, size: str | None, device: str) -> list[Any]:
    from entropy_attn.bench.workloads import MODELS, workloads

    wanted = None if size is None else options.parse_size(size, "--size")
    if model in MODELS:
        return workloads(model, wanted)
    pipe, _ = options.load(model, device, "auto")
    from entropy_attn.bench.from_pipeline import pipeline_workloads
    from entropy_attn.pipelines import check_size, train_size

    wanted = wanted or train_size(pipe)
    check_size(pipe, wanted)
    return pipeline_workloads(pipe, Path(model).name or model, wanted)


def _measure(
    todo: list[Any], device: Any, names: Sequence[str] | None, about: dict[str, str], paths: list[Path]
) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from entropy_attn.bench.measure import DeviceLost, measure_all
    from entropy_attn.bench.table import CsvRows

    files = [CsvRows(path, about) for path in paths]
    rows: list[dict[str, Any]] = []
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("measuring", total=len(todo))

            def begins(case: Any) -> None:
                progress.update(task, description=case.label)

            for _, of_case in measure_all(todo, device, names, begins):
                rows += of_case
                for file in files:
                    file.write(of_case)
                progress.update(task, advance=1)
    except DeviceLost as lost:
        print(f"entropy-attn: the device is lost, and the cases that were left with it: {lost}", file=sys.stderr)
    finally:
        for file in files:
            file.close()
    return rows
