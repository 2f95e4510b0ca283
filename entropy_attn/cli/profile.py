"""`entropy-attn profile`: options in, tables and files out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options

SHAPES_PROMPTS = (
    "a red circle and a blue square",
    "a green triangle",
    "a yellow square above a red triangle",
    "two blue circles",
)
GENERAL_PROMPTS = ("a photograph of a red fox in a snowy forest", "a bowl of fruit on a wooden table, oil painting")
SIZE_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn profile --out profile\n\n"
    "  entropy-attn profile --model ./my-stable-diffusion --sizes 256,512,512x768 --scales off,logn --steps 20\n\n"
    "  entropy-attn profile --scale off --scale logn:strength=0.5 --scale power:p=0.25 --scale yarn:steps=0..10\n"
)


def profile(
    out: Annotated[Path, typer.Option(help="Folder for the tables and pictures; made if missing.")] = Path("profile"),
    model: Annotated[str, typer.Option(help=options.MODEL_HELP)] = "shapes",
    sizes: Annotated[
        str | None,
        typer.Option(
            help=f"Picture sizes, by commas; each {options.SIZE_HELP}; by default 0.5 to 2 times the training size."
        ),
    ] = None,
    scales: Annotated[
        list[str],
        typer.Option(
            "--scale", "--scales", help=f"Scale policies, by commas or given several times; each {options.SCALE_HELP}."
        ),
    ] = ("off", "logn"),
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; may be given several times; by default a few built-in ones.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the starting noise, by commas.")] = "0",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 15,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; by default 4 for shapes, else the pipeline's own.")
    ] = None,
    device: Annotated[str, typer.Option(help=options.DEVICE_HELP)] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(options.DTYPES) + ".")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
) -> None:
    with options.refusals():
        policies = {name: options.parse_scale(name) for name in options.parse_list("--scale", ",".join(scales))}
        seed_list = options.parse_seeds(seeds)
        size_list = (
            None if sizes is None else [options.parse_size(size) for size in options.parse_list("--sizes", sizes)]
        )
        options.check_at_least("--steps", steps, 1)
        options.check_at_least("--guidance-scale", guidance_scale, 0)
        options.check_prompts(prompt or [])
        options.output_folder(out)
        from .. import plots
        from .. import profile as profiling
        from ..pipelines import train_size

        pipe, running_on = options.load(model, device, dtype)
        plan = profiling.ProfilePlan(
            sizes=_sizes(pipe, size_list),
            policies=policies,
            prompts=prompt or list(SHAPES_PROMPTS if model == "shapes" else GENERAL_PROMPTS),
            seeds=seed_list,
            steps=steps,
            guidance_scale=options.guidance(model, guidance_scale),
            reference=train_size(pipe),
        )
        result = _run(profiling, pipe, plan)
        summary = {**running_on, "versions": options.versions(), **profiling.summarize(result)}
    title = Path(model).name or model
    files = {**profiling.save_data(result, summary, out), **plots.save_figures(result, title, out)}
    if as_json:
        print(json.dumps({**summary, "files": {name: str(path) for name, path in files.items()}}, indent=2))
    else:
        _print_tables(summary)
        from rich.console import Console

        console = Console(soft_wrap=True, highlight=False)
        console.print(f"\nWritten to [bold]{out.resolve()}[/bold]:")
        for path in files.values():
            console.print(f"  {path.name}")


profile.__doc__ = f"Measure attention entropy over sizes and scale policies; write tables and figures.\n\n{EXAMPLE}"


def _sizes(pipe: Any, given: list[options.Size] | None) -> list[options.Size]:
    from ..pipelines import check_size, size_multiple, train_size

    if given is None:
        multiple = size_multiple(pipe)
        height, width = train_size(pipe)

        def fitting(side: float) -> int:
            return max(1, round(side / multiple)) * multiple

        return list(dict.fromkeys((fitting(height * factor), fitting(width * factor)) for factor in SIZE_FACTORS))
    for size in given:
        check_size(pipe, size)
    if len(set(given)) < len(given):
        raise ValueError("--sizes: the same size is given twice")
    return given


def _run(profiling: Any, pipe: Any, plan: Any) -> Any:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("sampling", total=plan.total_steps)
        return profiling.run_profile(
            pipe, plan, lambda size, policy: progress.update(task, advance=1, description=f"{size} px, {policy}")
        )


def _print_tables(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    policies = list(summary["policies"])
    by_size = Table(title=f"Mean self-attention entropy H, {summary['model']}, {summary['steps']} steps")
    by_size.add_column("size (px)")
    for policy in policies:
        by_size.add_column(f"{policy}\nnats", justify="right")
    for policy in policies:
        by_size.add_column(f"{policy}\nH / ln N", justify="right")
    for policy in policies:
        by_size.add_column(f"{policy}\nseconds", justify="right")
    for size in summary["sizes"]:
        by_size.add_row(
            size,
            *(_number(summary["mean_entropy"][policy][size]) for policy in policies),
            *(_number(summary["mean_entropy_over_ln_tokens"][policy][size]) for policy in policies),
            *(_number(summary["seconds_per_run"][policy][size], 1) for policy in policies),
        )
    fits = Table(title="Entropy against ln N, over layers and sizes")
    for name in ("scale", "slope", "intercept", "R²", "points"):
        fits.add_column(name, justify="left" if name == "scale" else "right")
    for policy in policies:
        fit = summary["fit"][policy]
        fits.add_row(policy, *(_number(fit[key]) for key in ("slope", "intercept", "r2")), str(fit["points"]))
    console.print(by_size)
    console.print(fits)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
