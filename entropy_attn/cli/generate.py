"""`entropy-attn generate`: images under a scale policy and a guidance, alone or beside the pipeline's default."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli.loading import Loading
from entropy_attn.cli.option_groups import takes_options
from entropy_attn.cli.outputs import output_image
from entropy_attn.cli.parsing import GUIDANCE_HELP, check_prompts, parse_guidance, parse_list, parse_scale
from entropy_attn.cli.refusals import refusals
from entropy_attn.cli.sampling_options import Sampling, SamplingOptions

EXAMPLE = (
    "Examples:\n\n"
    '  entropy-attn generate --prompt "a red circle and a blue square" --size 96x64 --out circle.png\n\n'
    '  entropy-attn generate --prompt "two red circles" --size 96 --scale logn,lognoroot --compare --out rows.png\n\n'
    '  entropy-attn generate --prompt "a red circle and a blue square" --guidance tsam --compare --out guided.png\n\n'
    '  entropy-attn generate --prompt "a red circle and a blue square" --guidance tsam:alpha=10 --show-maps maps.png\n'
)
SHEET_DPI = 110
DEFAULT, UNGUIDED = "off", "unguided"  # names of the runs that the requested one is compared with


@takes_options(loading=Loading, sampling=SamplingOptions)
def generate(
    loading: Loading,
    prompt: Annotated[
        list[str],
        typer.Option(help="What to draw. Give it several times for several images, in files numbered from 0."),
    ],
    sampling: SamplingOptions,
    out: Annotated[Path, typer.Option(help="Image file to write; creates its folder.")] = Path("picture.png"),
    guidance: Annotated[str | None, typer.Option(help=f"Guidance: {GUIDANCE_HELP}")] = None,
    show_maps: Annotated[
        Path | None,
        typer.Option(
            help="Also write a figure of what --guidance did: the map of every word without and with it, the matrices "
            "that it compares, and its loss at every step. Generates once more without guidance."
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Put the image of the unchanged pipeline beside the new one. With it, --scale takes several policies, "
            "separated by commas: an image for each, from the same noise.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    with refusals(loading, len(prompt)):
        request = _parse(loading, prompt, sampling, out, guidance, show_maps, compare)
        pipe, running_on = loading.load()
        request = dataclasses.replace(request, sampling=request.sampling.fit(pipe, prompt))
        _check_guidance(pipe, request)
        results = _run(pipe, request)
        files = _draw(loading.model, request, results)
    _print(request, running_on, results, files, as_json)


generate.__doc__ = (
    f"Generate an image for each prompt. With --compare, show the unchanged pipeline's image beside it.\n\n{EXAMPLE}"
)


@dataclass(frozen=True)
class Request:
    """What was asked for. `guidance` is the text of the option, `method` the guidance itself.

    `scales` is {name: policy}: one, or several to compare.
    """

    prompts: list[str]
    sampling: Sampling
    scales: dict[str, Any]
    guidance: str | None
    method: Any
    out: Path
    show_maps: Path | None
    compare: bool

    @property
    def names(self) -> list[str]:
        """What the requested runs are called in output and captions."""
        return [scale if self.method is None else f"{scale} + {self.guidance}" for scale in self.scales]

    def runs(self) -> dict[str, tuple[Any, Any]]:
        """{name: (scale policy, guidance)}, in the order in which they are made."""
        runs = {name: (policy, self.method) for name, policy in zip(self.names, self.scales.values(), strict=True)}
        if self.show_maps is not None:  # alpha=0 changes nothing, but measures the maps and the loss
            (policy,) = self.scales.values()
            runs = {UNGUIDED: (policy, dataclasses.replace(self.method, alpha=0.0)), **runs}
        return {DEFAULT: (parse_scale("off"), None), **runs} if self.compare else runs


@dataclass
class Results:
    """Of every run by its name: images, seconds, and the handle of its guidance if it had one."""

    images: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    handles: dict[str, Any] = dataclasses.field(default_factory=dict)


def _parse(
    loading: Loading,
    prompts: list[str],
    options: SamplingOptions,
    out: Path,
    guidance: str | None,
    show_maps: Path | None,
    compare: bool,
) -> Request:
    check_prompts(prompts)
    method = parse_guidance(guidance)
    scales = {name: parse_scale(name) for name in parse_list("--scale", options.scale)}
    if len(scales) > 1 and not compare:
        raise ValueError(f"--scale: expected one policy, or --compare with several, got {options.scale!r}")
    sampling = dataclasses.replace(options, scale=next(iter(scales))).parse(loading.model)
    if compare and DEFAULT in scales and (method is None or len(scales) > 1):
        raise ValueError(
            f"--compare: expected a --scale other than 'off', such as logn, or --guidance; got {options.scale!r}"
        )
    if method is not None and not any(step < sampling.steps for step in method.steps):
        raise ValueError(f"--guidance: expected steps below --steps {sampling.steps}, got {guidance!r}")
    if show_maps is not None:
        if method is None:
            raise ValueError(f"--show-maps: expected --guidance tsam with it, got --guidance {guidance or 'off'}")
        if show_maps.resolve() == out.resolve():
            raise ValueError(f"--show-maps: expected a file other than --out, got {str(show_maps)!r} for both")
        if len(prompts) > 1:
            raise ValueError(f"--show-maps: expected one --prompt, got {len(prompts)}")
        if len(scales) > 1:
            raise ValueError(f"--show-maps: expected one --scale, got {options.scale!r}")
        output_image(show_maps, "--show-maps")
    output_image(out)
    return Request(prompts, sampling, scales, guidance, method, out, show_maps, compare)


def _check_guidance(pipe: Any, request: Request) -> None:
    """Refuse a pipeline that cannot be guided, and a prompt for which there would be nothing to show."""
    from entropy_attn.integrations.guidance.prompts import prompts_of
    from entropy_attn.pipelines import check_guided

    if request.method is None:
        return
    check_guided(pipe)
    if request.show_maps is not None:
        (prompt,) = request.prompts
        if not request.method.applies_to(prompts_of(pipe, [prompt], attention=False)[0]):
            raise ValueError(f"--show-maps: expected a prompt of two words or more, got {prompt!r}")


def _run(pipe: Any, request: Request) -> Results:
    from entropy_attn.pipelines import attach

    results = Results()
    for name, (policy, method) in request.runs().items():
        start = time.perf_counter()
        with contextlib.ExitStack() as guided:
            if method is not None:
                results.handles[name] = guided.enter_context(attach(pipe, method))
            results.images[name] = request.sampling.sample(pipe, request.prompts, scale=policy)
        results.seconds[name] = time.perf_counter() - start
    return results


def _draw(model: str, request: Request, results: Results) -> list[Path]:
    """Write the images and the figure of the maps; returns the files of the images."""
    files = _files(request.out, len(request.prompts))
    for number, (prompt, file) in enumerate(zip(request.prompts, files, strict=True)):
        image = results.images[request.names[0]][number]
        if request.compare:
            from entropy_attn.plots import side_by_side

            height, width = request.sampling.fitted_size
            captions = [f"original ({height}x{width} px)", *(f"ours: {name}" for name in request.names)]
            images = [results.images[name][number] for name in (DEFAULT, *request.names)]
            image = side_by_side(images, captions, title=prompt)
        image.save(file)
    if request.show_maps is not None:
        from entropy_attn.plots.guidance import guidance_sheet

        (name,) = request.names
        handle = results.handles[name]
        figure = guidance_sheet(
            handle,
            [results.images[UNGUIDED][0], results.images[name][0]],
            unguided=results.handles[UNGUIDED],
            subtitle=_caption(handle, model, request),
        )
        figure.savefig(request.show_maps, dpi=SHEET_DPI)
    return files


def _files(out: Path, count: int) -> list[Path]:
    """A file for each image; several are numbered from 0."""
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(count)]


def _caption(handle: Any, model: str, request: Request) -> str:
    sampling, (rows, columns) = request.sampling, handle.maps.shape[1:3]
    height, width = sampling.fitted_size
    return (
        f"{Path(model).name or model}, {height}x{width} px, {sampling.steps} steps, seed {sampling.seed}, "
        f"{request.guidance}; maps of the layers of {rows}x{columns} tokens at step {handle.losses[-1][0]}, "
        "one color scale for each word"
    )


def _print(request: Request, running_on: dict[str, Any], results: Results, files: list[Path], as_json: bool) -> None:
    if not as_json:
        written = " and ".join(str(path.resolve()) for path in (*files, request.show_maps) if path is not None)
        print(f"Written to {written} ({sum(results.seconds.values()):.1f} s)")
        return
    sampling = request.sampling
    done = {
        **running_on,
        "prompts": request.prompts,
        "negative_prompt": sampling.negative_prompt,
        "size": list(sampling.fitted_size),
        "policies": {name: repr(policy) for name, (policy, _) in request.runs().items()},
        "guidance": request.guidance,
        "seed": sampling.seed,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "seconds": results.seconds,
        "out": str(request.out),
        "files": [str(file) for file in files],
        "show_maps": None if request.show_maps is None else str(request.show_maps),
        "losses": {
            name: [[step, float(loss)] for step, loss in handle.losses] for name, handle in results.handles.items()
        },
    }
    print(json.dumps(done, indent=2))
