"""`entropy-attn evaluate scale`: options in, files out; `entropy_attn.evaluation.scale` evaluates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli.evaluate_options import EvaluateOptions, Sampled, default_sizes, is_embedded, kept
from entropy_attn.cli.loading import MAY_CHANGE, Loading
from entropy_attn.cli.option_groups import takes_options
from entropy_attn.cli.outputs import output_folder
from entropy_attn.cli.parsing import parse_list, parse_scale, parse_size
from entropy_attn.cli.progress import kept_in, run_progress
from entropy_attn.cli.refusals import refusals
from entropy_attn.cli.sampling_options import scales_option, sizes_option
from entropy_attn.cli.versions import versions

SHAPES_CAPTIONS, SHAPES_SCENES = 60, 24  # the default of the embedded models
DEFAULT_SCALES = "off,logn,lognoroot"
EXAMPLE = (
    "Examples:\n\n"
    "  entropy-attn evaluate scale --sizes 64,96,128 --out evaluation\n\n"
    "  entropy-attn evaluate scale --model ./stable-diffusion-2-1-base --sizes 224,448,512,768 --prompts captions.txt "
    "--real coco/val2014 --features inception-2015-12-05.pt --clip ./clip-vit-large-patch14 --out sd21\n"
)


@takes_options(loading=Loading, options=EvaluateOptions)
def scale(
    loading: Loading,
    options: EvaluateOptions,
    out: Annotated[Path, typer.Option(help="Folder for images and tables; created if missing.")] = Path("evaluation"),
    sizes: Annotated[str | None, sizes_option("1, 1.5, 2 times the training size")] = None,
    scales: Annotated[list[str] | None, scales_option(DEFAULT_SCALES, "'off' must be one. ")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File with one prompt a line, or a prompt set of TIFA, PartiPrompts or GenEval. Default for shapes: "
            f"{SHAPES_CAPTIONS} captions."
        ),
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="Folder of real images, for KID, FID, precision and recall; needs --features.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Feature network for --real: a TorchScript file, or .pt2 of torch.export, that takes "
            "(B, 3, side, side) uint8 and returns (B, D)."
        ),
    ] = None,
    side: Annotated[int, typer.Option(help="All images are resized to this square for --features.")] = 299,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model in transformers' format, for the CLIP cosine.")
    ] = None,
    shapes: Annotated[
        bool | None,
        typer.Option(
            help="Score with the exact checker, and measure the denoising loss; prompts are captions of shapes. "
            "Default: for the embedded models only."
        ),
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(help=f"Scenes for the denoising loss; 0 is none. Default: {SHAPES_SCENES} for shapes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows of scale.csv as JSON.")] = False,
) -> None:
    from entropy_attn.runs.processes import launched

    with kept_in(out, kept), refusals(loading, options.batch), launched() as processes:
        sampled = options.parse(loading.model)
        chosen = {name: parse_scale(name) for name in parse_list("--scale", ",".join(scales or [DEFAULT_SCALES]))}
        shapes = is_embedded(loading.model) if shapes is None else shapes
        given = {
            "sizes": None if sizes is None else [parse_size(size, "--sizes") for size in parse_list("--sizes", sizes)],
            "policies": chosen,
            "prompts": sampled.prompts(_prompts(prompts, shapes)),
        }
        output_folder(out)
        found = _run(
            loading, sampled, given, out, {"real": real, "features": features, "side": side, "clip": clip},
            shapes, (SHAPES_SCENES if shapes else 0) if scenes is None else scenes, processes,
        )  # fmt: skip
    if found:
        _print(*found, out, as_json)


scale.__doc__ = (
    "Compare scale policies at several sizes: KID, FID, precision and recall, CLIP, and on shapes the objects found."
    f"\n\n{EXAMPLE}"
)


def _prompts(path: Path | None, shapes: bool) -> list[str]:
    """The prompts of the file, or the captions of the embedded models."""
    if path is not None:
        from entropy_attn.evaluation.prompt_sets import read_prompts

        return read_prompts(path).texts
    if not shapes:
        raise ValueError("--prompts: expected a file, got none: only shapes has default prompts")
    from entropy_attn.evaluation.shapes_captions import shapes_requests

    return [request.caption() for request in shapes_requests(SHAPES_CAPTIONS)]


def _run(
    loading: Loading,
    sampled: Sampled,
    given: dict[str, Any],
    out: Path,
    paths: dict[str, Any],
    shapes: bool,
    scenes: int,
    processes: Any,
) -> tuple[Any, dict[str, Path], dict[str, Any]] | None:
    """The result, {name: path} of all files, and what it ran on; None except in the first process."""
    pipe, running_on = loading.load()
    from entropy_attn.evaluation.features import Features
    from entropy_attn.evaluation.scale import Metrics, evaluate_scale
    from entropy_attn.evaluation.scale_plan import ScalePlan
    from entropy_attn.evaluation.scale_report import write_report
    from entropy_attn.pipelines.clip import Clip

    device = running_on["device"]
    sizes = given.pop("sizes") or default_sizes(pipe)
    about = {name: value for name, value in running_on.items() if name not in MAY_CHANGE}
    plan = ScalePlan(
        sizes=sizes, seeds=sampled.seeds, settings=sampled.settings, batch=sampled.batch, about=about, **given
    )
    features = None if paths["features"] is None else Features(paths["features"], device, paths["side"])
    clip = None if paths["clip"] is None else Clip(paths["clip"], device)
    metrics = Metrics(paths["real"], features, clip, shapes, scenes)
    with run_progress() as (_, on_run):
        result = evaluate_scale(pipe, plan, metrics, out, on_run, processes)
    facts = {**running_on, "versions": versions()}
    if not processes.is_first:
        return None
    title = Path(loading.model).name or loading.model
    head = {"device": running_on["device"], "dtype": running_on["dtype"]}
    return result, write_report(result, out, title, head), facts


def _print(result: Any, files: dict[str, Path], about: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        rows = [{name: None if value != value else value for name, value in row.items()} for row in result.rows]
        print(json.dumps({**about, **result.plan.described(), "rows": rows, "notes": result.notes,
                          "files": {name: str(path) for name, path in files.items()}}, indent=2))  # fmt: skip
        return
    print(files["page"].read_text(encoding="utf-8"))
    print(f"Written to {out.resolve()}: {', '.join(path.name for path in files.values())}")
