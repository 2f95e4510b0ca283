"""`entropy-attn profile`: options in, tables and files out; what is measured is `ea.profile`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli import EXIT_INTERRUPTED, Refused, options
from entropy_attn.cli.loading import Loading, takes_loading
from entropy_attn.cli.profile_report import print_report

SHAPES_PROMPTS = (
    "a red circle and a blue square",
    "a green triangle",
    "a yellow square above a red triangle",
    "two blue circles",
)
HOW = ("device", "offload", "vae_tiling")  # which may change from one part of a profile to the next
EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn profile --out profile\n\n"
    "  entropy-attn profile --model ./my-stable-diffusion --sizes 256,512,512x768 --scales off,logn --steps 20\n\n"
    "  entropy-attn profile --scale off --scale logn:strength=0.5 --scale power:p=0.25 --scale yarn:steps=0..10\n\n"
    "  entropy-attn profile --model ./sdxl --sizes 1024,2048 --offload model --vae-tiling --out sdxl --resume\n"
)


@takes_loading
def profile(
    loading: Loading,
    out: Annotated[Path, typer.Option(help="Folder for the tables and pictures; made if missing.")] = Path("profile"),
    sizes: Annotated[
        str | None,
        typer.Option(
            help=f"Picture sizes, by commas; each {options.SIZE_HELP}; by default 0.5 to 2 times the training size."
        ),
    ] = None,
    scales: Annotated[
        list[str],
        typer.Option(
            "--scale",
            "--scales",
            help=f"Scale policies, by commas or given several times; each {options.SCALE_HELP}. "
            "By default off and logn.",
        ),
    ] = (),
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; may be given several times; by default a few built-in ones.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw, for every prompt.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the starting noise, by commas.")] = "0",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 15,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; by default 4 for shapes, else the pipeline's own.")
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            help="A further argument of the pipeline's call, such as num_frames=9; may be given several times."
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Layers that the scales are for: self, cross, all, or a regular expression.")
    ] = "self",
    heads: Annotated[
        bool, typer.Option("--heads", help="Keep a row of every head at every step, in entropy.csv.gz.")
    ] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Measure only: the VAE is not run.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished profile in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
) -> None:
    from entropy_attn.profiling.plan import DEFAULT_PROMPTS

    with _kept_in(out), options.refusals(loading, len(prompt or DEFAULT_PROMPTS)):
        names = options.parse_list("--scale", ",".join(scales)) if scales else None
        policies = None if names is None else {name: options.parse_scale(name) for name in names}
        seed_list = options.parse_seeds(seeds)
        size_list = (
            None if sizes is None else [options.parse_size(size) for size in options.parse_list("--sizes", sizes)]
        )
        if size_list is not None and len(set(size_list)) < len(size_list):
            raise ValueError("--sizes: the same size is given twice")
        options.check_at_least("--steps", steps, 1)
        options.check_at_least("--guidance-scale", guidance_scale, 0)
        options.check_prompts(prompt or [])
        given = options.parse_arguments(argument or [])
        options.output_folder(out)
        pipe, running_on = loading.load(anything=True)
        from entropy_attn import profiling

        prompts = prompt
        if prompt is None and loading.model == "shapes":
            prompts = list(SHAPES_PROMPTS)
        with _progress() as (on_step, on_run):
            result = profiling.profile(
                pipe,
                sizes=size_list,
                scales=policies,
                prompts=prompts,
                negative_prompt=negative_prompt,
                seeds=seed_list,
                steps=steps,
                guidance_scale=options.guidance(loading.model, guidance_scale),
                arguments=given,
                layers=layers,
                heads=heads,
                pictures=not no_pictures,
                out=out,
                resume=resume,
                title=Path(loading.model).name or loading.model,
                about={name: value for name, value in running_on.items() if name not in HOW},
                on_step=on_step,
                on_run=on_run,
            )
        summary = {**running_on, "versions": options.versions(), **result.summary}
        result.files["summary"].write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps({**summary, "files": {name: str(path) for name, path in result.files.items()}}, indent=2))
    else:
        print_report(summary)
        print(f"\nWritten to {out.resolve()}:")
        for path in result.files.values():
            print(f"  {path.name}")


profile.__doc__ = f"Measure attention entropy over sizes and scale policies; write tables and figures.\n\n{EXAMPLE}"


@contextlib.contextmanager
def _kept_in(out: Path) -> Iterator[None]:
    """Say what an interruption or a failure leaves."""
    try:
        yield
    except KeyboardInterrupt:
        # On a line of its own, below the ^C of the terminal
        print(f"\nentropy-attn: interrupted; {_finished(out) or f'nothing was finished in {out}'}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Refused as error:
        kept = _finished(out)
        raise Refused(f"{error}; {kept}") if kept and "out of device memory" in str(error) else error from None


def _finished(out: Path) -> str | None:
    """What there is in the folder of a profile that was cut off."""
    from entropy_attn.profiling.store import unfinished

    counts = unfinished(out)
    if counts is None or not counts[0]:
        return None
    return f"{counts[0]} of {counts[1]} runs are kept in {out}, --resume goes on from there"


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """A bar on a terminal, and a plain line a run where there is none."""
    if not sys.stderr.isatty():
        yield None, _line
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("sampling", total=None)

        def run_ended(run: Any, _seconds: float | None, number: int, count: int) -> None:
            progress.update(task, total=count, completed=number, description=str(run))

        yield lambda run: progress.update(task, description=str(run)), run_ended


def _line(run: Any, seconds: float | None, number: int, count: int) -> None:
    spent = "finished before" if seconds is None else f"{seconds:.1f} s"
    print(f"entropy-attn: run {number} of {count}: {run}: {spent}", file=sys.stderr, flush=True)
