"""`entropy-attn evaluate cost`: options in, two tables out; `entropy_attn.evaluation.cost` measures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli import is_one_of_several
from entropy_attn.cli.evaluate_options import default_sizes, kept
from entropy_attn.cli.loading import Loading
from entropy_attn.cli.option_groups import takes_options
from entropy_attn.cli.outputs import output_folder
from entropy_attn.cli.parsing import (
    check_at_least,
    check_prompts,
    parse_arguments,
    parse_list,
    parse_scale,
    parse_size,
)
from entropy_attn.cli.progress import kept_in, run_progress
from entropy_attn.cli.refusals import refusals
from entropy_attn.cli.sampling_options import GUIDANCE_SCALE_HELP, default_guidance_scale, scales_option, sizes_option
from entropy_attn.cli.versions import versions

EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn evaluate cost --sizes 64,96,128 --out cost\n\n"
    "  entropy-attn evaluate cost --model ./stable-diffusion-2-1-base --sizes 512,768,1024 --steps 50 --out sd21-cost\n"
)


@dataclass(frozen=True)
class Load:
    """Loads the pipeline, also in a new process."""

    loading: Loading

    def __call__(self) -> Any:
        return self.loading.load()[0]


@takes_options(loading=Loading)
def cost(
    loading: Loading,
    out: Annotated[Path, typer.Option(help="Folder for the tables; created if missing.")] = Path("cost"),
    sizes: Annotated[str | None, sizes_option("1, 1.5, 2 times the training size")] = None,
    scales: Annotated[
        list[str] | None, scales_option("off,logn", "The first one is what others are compared with. ")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a red circle and a blue square",
    steps: Annotated[int, typer.Option(help="Number of denoising steps.")] = 25,
    guidance_scale: Annotated[float | None, typer.Option(help=GUIDANCE_SCALE_HELP)] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(help="Another argument of the pipeline's call, NAME=VALUE; can be given several times."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed images of each way.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows of cost.csv as JSON.")] = False,
) -> None:
    with kept_in(out, kept), refusals(loading):
        if is_one_of_several():
            raise ValueError("evaluate cost: expected one process, because others would change its times, got several")
        check_at_least("--steps", steps, 1)
        check_at_least("--repeats", repeats, 1)
        check_at_least("--guidance-scale", guidance_scale, 0)
        check_prompts([prompt])
        policies = {name: parse_scale(name) for name in parse_list("--scale", ",".join(scales or ["off,logn"]))}
        given = None if sizes is None else [parse_size(size, "--sizes") for size in parse_list("--sizes", sizes)]
        output_folder(out)
        pipe, running_on = loading.load()
        from entropy_attn.evaluation.cost import CostPlan, evaluate_cost
        from entropy_attn.evaluation.cost_report import write_cost_report
        from entropy_attn.evaluation.sampling import Settings

        guided = default_guidance_scale(loading.model, guidance_scale)
        settings = Settings(steps, guided, arguments=parse_arguments(argument or []))
        plan = CostPlan(given or default_sizes(pipe), policies, prompt, settings, repeats, running_on)
        del pipe
        with run_progress("measuring") as (_, on_run):
            rows = evaluate_cost(Load(loading), plan, out, running_on["device"], on_run)
        about = _machine(running_on)
        files = write_cost_report(rows, plan, out, Path(loading.model).name or loading.model, about)
    if as_json:
        print(json.dumps({**about, **plan.described(), "rows": rows, "versions": versions(),
                          "files": {name: str(path) for name, path in files.items()}}, indent=2))  # fmt: skip
        return
    print(files["page"].read_text(encoding="utf-8"))
    print(f"Written to {out.resolve()}: {', '.join(path.name for path in files.values())}")


cost.__doc__ = (
    f"Measure time and peak memory of an image by size: scale policies, resampling, and MultiDiffusion.\n\n{EXAMPLE}"
)


def _machine(running_on: dict[str, Any]) -> dict[str, Any]:
    import torch

    from entropy_attn.bench.machine import machine

    found = machine(torch.device(running_on["device"]))
    return {"device": running_on["device"], "dtype": running_on["dtype"], "machine": found["device"],
            "torch": found["torch"], "date": found["date"]}  # fmt: skip
