"""`entropy-attn profile`: options in, tables and files out; `ea.profile` measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli.loading import MAY_CHANGE, Loading
from entropy_attn.cli.option_groups import takes_options
from entropy_attn.cli.outputs import output_folder
from entropy_attn.cli.parsing import (
    Size,
    check_at_least,
    check_prompts,
    parse_arguments,
    parse_list,
    parse_scale,
    parse_seeds,
    parse_size,
)
from entropy_attn.cli.profile_report import print_report
from entropy_attn.cli.progress import kept_in, run_progress
from entropy_attn.cli.refusals import refusals
from entropy_attn.cli.sampling_options import GUIDANCE_SCALE_HELP, default_guidance_scale, scales_option, sizes_option
from entropy_attn.cli.versions import versions

SHAPES_PROMPTS = (
    "a red circle and a blue square",
    "a green triangle",
    "a yellow square above a red triangle",
    "two blue circles",
)
EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn profile --out profile\n\n"
    "  entropy-attn profile --model ./my-stable-diffusion --sizes 256,512,512x768 --scales off,logn --steps 20\n\n"
    "  entropy-attn profile --sizes 64,128 --scale off --steps 4 --no-pictures --out check\n\n"
    "  entropy-attn profile --sizes 128 --scale off --scale check/hold-entropy.json --out held\n\n"
    "  entropy-attn profile --scale off --scale logn:strength=0.5 --scale power:p=0.25 --scale yarn:steps=0..10\n\n"
    "  entropy-attn profile --sizes 64,128 --heads --explore --out profile\n\n"
    "  entropy-attn profile --model ./sdxl --sizes 1024,2048 --offload model --vae-tiling --out sdxl --resume\n"
)


@takes_options(loading=Loading)
def profile(
    loading: Loading,
    out: Annotated[Path, typer.Option(help="Folder for tables and images; created if missing.")] = Path("profile"),
    sizes: Annotated[str | None, sizes_option("0.5 to 2 times the training size")] = None,
    scales: Annotated[list[str] | None, scales_option("off,logn")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; can be given several times. Default: a few built-in ones.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the images must not show.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the starting noise, separated by commas.")] = "0",
    steps: Annotated[int, typer.Option(help="Number of denoising steps.")] = 15,
    guidance_scale: Annotated[float | None, typer.Option(help=GUIDANCE_SCALE_HELP)] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(help="Another argument of the pipeline's call, such as num_frames=9; can be given several times."),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Layers that get the scales: self, cross, all, or a regular expression.")
    ] = "self",
    heads: Annotated[
        bool, typer.Option("--heads", help="Keep a row for every head at every step, in entropy.csv.gz.")
    ] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Only measure; the VAE does not run.")] = False,
    regime_steps: Annotated[
        int,
        typer.Option(
            help="At how many steps of each run with the scale 'off' to measure which layers a scale can move; "
            "such a step makes three calls of attention for one. 0 for none."
        ),
    ] = 3,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the finished runs of the same profile in --out, and make the others.")
    ] = False,
    explore: Annotated[
        bool, typer.Option("--explore", help="Also write explore.html to --out, a page to look at in a browser.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
) -> None:
    from entropy_attn.profiling.plan import DEFAULT_PROMPTS
    from entropy_attn.runs.processes import launched
    from entropy_attn.shapes.names import embedded

    images = len(prompt or DEFAULT_PROMPTS)
    with kept_in(out, _finished), refusals(loading, images), launched() as processes:
        check_at_least("--steps", steps, 1)
        check_at_least("--guidance-scale", guidance_scale, 0)
        check_at_least("--regime-steps", regime_steps, 0)
        check_prompts(prompt or [])
        if prompt is None and embedded(loading.model) is not None:
            prompt = list(SHAPES_PROMPTS)
        plan = {
            "sizes": _parse_sizes(sizes),
            "scales": {name: parse_scale(name) for name in parse_list("--scale", ",".join(scales))} if scales else None,
            "prompts": prompt,
            "negative_prompt": negative_prompt,
            "seeds": parse_seeds(seeds),
            "steps": steps,
            "guidance_scale": default_guidance_scale(loading.model, guidance_scale),
            "arguments": parse_arguments(argument or []),
            "layers": layers,
            "heads": heads,
            "pictures": not no_pictures,
            "regime_steps": regime_steps,
        }
        output_folder(out)
        if explore:
            from entropy_attn.explore import require

            require()
        found = _run(loading, plan, out, resume, processes)
        if found and explore:
            from entropy_attn.explore import read_profile, write_page

            found[1]["explore"] = write_page(out / "explore.html", [read_profile(out, "--out")])
    if found:
        _print(*found, out, as_json)


profile.__doc__ = (
    f"Measure attention entropy at several image sizes under several scale policies; write tables and figures."
    "\n\nStarted with `torchrun --nproc-per-node N -m entropy_attn profile`, N processes divide the runs."
    f"\n\n{EXAMPLE}"
)


def _parse_sizes(text: str | None) -> list[Size] | None:
    if text is None:
        return None
    sizes = [parse_size(size, "--sizes") for size in parse_list("--sizes", text)]
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"--sizes: expected different sizes, got the same size twice in {text!r}")
    return sizes


def _run(
    loading: Loading, plan: dict[str, Any], out: Path, resume: bool, processes: Any
) -> tuple[dict[str, Any], dict[str, Path]] | None:
    """What summary.json says, and {name: path} of all files; None except in the first process."""
    pipe, running_on = loading.load(anything=True)
    from entropy_attn import profiling

    with run_progress() as (on_step, on_run):
        result = profiling.profile(
            pipe,
            **plan,
            out=out,
            resume=resume,
            distributed=processes.count > 1,
            title=Path(loading.model).name or loading.model,
            about={name: value for name, value in running_on.items() if name not in MAY_CHANGE},
            on_step=on_step,
            on_run=on_run,
        )
    if not processes.is_first:
        return None
    summary = {**running_on, "versions": versions(), **result.summary}
    result.files["summary"].write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary, result.files


def _print(summary: dict[str, Any], files: dict[str, Path], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**summary, "files": {name: str(path) for name, path in files.items()}}, indent=2))
        return
    from entropy_attn.runs.folder import RUNS

    print_report(summary)
    print(f"\nWritten to {out.resolve()}:")
    for path in files.values():
        print(f"  {path.name}")
    print(f"  {RUNS}/")


def _finished(out: Path) -> str | None:
    """What an interrupted profile has left in its folder."""
    from entropy_attn.profiling.store import finished

    counts = finished(out)
    if counts is None or not 0 < counts[0] < counts[1]:
        return None
    return f"{counts[0]} of {counts[1]} runs are kept in {out}; --resume continues from there"
