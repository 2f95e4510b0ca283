"""`entropy-attn maps`: one image, and where it attends to each word of its prompt."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli.loading import Loading
from entropy_attn.cli.option_groups import takes_options
from entropy_attn.cli.outputs import output_image, output_page, output_table
from entropy_attn.cli.parsing import Size, check_choice, check_prompts, parse_size, parse_steps, parse_words
from entropy_attn.cli.progress import progress_bar
from entropy_attn.cli.refusals import refusals
from entropy_attn.cli.sampling_options import Sampling, SamplingOptions
from entropy_attn.cli.tables import Column, print_table
from entropy_attn.cli.versions import versions

EXAMPLE = (
    "Examples:\n\n"
    '  entropy-attn maps --prompt "a red circle and a blue square" --out maps.png\n\n'
    '  entropy-attn maps --prompt "a red circle and a blue square" --words circle,square --map-size 16 '
    "--at-steps 0,8,24 --csv maps.csv\n\n"
    '  entropy-attn maps --prompt "a red circle and a blue square" --explore words.html\n'
)
COLOR_SCALES = ("word", "all")
FIGURE_DPI = 150
TABLE = (
    Column("word", fold=True),
    Column("positions", rank=1, fold=True),
    Column("mean", right=True),
    Column("highest", right=True),
    Column("at row", right=True),
    Column("column", right=True),
)


@takes_options(loading=Loading, sampling=SamplingOptions)
def maps(
    loading: Loading,
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    sampling: SamplingOptions,
    out: Annotated[Path, typer.Option(help="Image file to write; creates its folder.")] = Path("maps.png"),
    words: Annotated[
        str | None,
        typer.Option(
            help="Words of the prompt, or positions in it (0 is the start token), separated by commas. Default: all."
        ),
    ] = None,
    tokens: Annotated[str | None, typer.Option(hidden=True, help="The older name of --words.")] = None,
    map_size: Annotated[
        str | None,
        typer.Option(
            help="Average the layers of this many tokens, as ROWSxCOLUMNS. Default: the finest layers of an "
            "embedded model, else the most common size."
        ),
    ] = None,
    at_steps: Annotated[
        str | None,
        typer.Option(help="Denoising steps, from 0, that get a row each below the mean, separated by commas."),
    ] = None,
    colors: Annotated[
        str,
        typer.Option(
            "--colors",
            "--colours",
            help="'word': a color scale for each word, from 0 to the highest attention to it. 'all': one color scale "
            "for all words, to compare them.",
        ),
    ] = "word",
    explore: Annotated[
        Path | None,
        typer.Option(help="Also write this .html file, to choose words and rank them at each place in a browser."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the values of the maps to this .csv file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    with refusals(loading):
        if words is not None and tokens is not None:
            raise ValueError("--words: expected either it or its older name --tokens, got both")
        request = Request(
            prompt=prompt,
            sampling=sampling.parse(loading.model),
            words=_parse_words(prompt, tokens if words is None else words),
            map_size=None if map_size is None else parse_size(map_size, "--map-size"),
            at_steps=[] if at_steps is None else parse_steps(at_steps, sampling.steps),
            color_scale=check_choice("--colors", colors, COLOR_SCALES),
            out=output_image(out),
            csv=None if csv is None else output_table(csv),
            explore=None if explore is None else _page(explore),
        )
        pipe, running_on = loading.load()
        request = _fit(pipe, loading.model, request)
        with _words_named():
            result = _run(pipe, request)
        _draw(loading.model, request, result)
    _print(request, running_on, result, as_json)


maps.__doc__ = f"Draw where the image attends to each word of its prompt.\n\n{EXAMPLE}"


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    prompt: str
    sampling: Sampling
    words: list[str | int] | None  # None: all
    map_size: Size | None
    at_steps: list[int]
    color_scale: str
    out: Path
    csv: Path | None
    explore: Path | None


@dataclass(frozen=True)
class Result:
    """The image, the recorder, and {step: maps (1, words, rows, columns)} on the CPU; step None is the mean."""

    image: Any
    recorder: Any
    maps: dict[int | None, Any]
    seconds: float


def _page(path: Path) -> Path:
    from entropy_attn.explore import require

    require()
    return output_page(path, "--explore")


def _parse_words(prompt: str, words: str | None) -> list[str | int] | None:
    check_prompts([prompt])
    if words is not None:
        return parse_words(words)
    if not _has_word(prompt):
        raise ValueError(
            f"--prompt: expected at least one word to draw a map of, or positions in --words, got {prompt!r}"
        )  # fmt: skip
    return None


@contextlib.contextmanager
def _words_named() -> Iterator[None]:
    """Refusals name the option, where the recorder names its argument `tokens`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(r"^tokens(?=[:=])", "--words", str(error))) from error


def _has_word(prompt: str) -> bool:
    """Letters, digits and symbols such as emoji are words; punctuation and signs of arithmetic are not."""
    return any(unicodedata.category(character) == "So" or character.isalnum() for character in prompt)


def _fit(pipe: Any, model: str, request: Request) -> Request:
    """The request with the sizes that follow from the pipeline."""
    from entropy_attn.shapes.names import embedded

    sampling, map_size = request.sampling.fit(pipe, [request.prompt]), request.map_size
    if map_size is None and embedded(model) is not None:  # their objects are a few tokens wide
        height, width = sampling.fitted_size
        map_size = height // pipe.vae_scale_factor, width // pipe.vae_scale_factor
    return dataclasses.replace(request, sampling=sampling, map_size=map_size)


def _run(pipe: Any, request: Request) -> Result:
    from entropy_attn.recorders.maps import MapRecorder

    mean = MapRecorder(request.words, request.map_size)
    by_step = MapRecorder(request.words, request.map_size, steps=request.at_steps or None)
    start = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("denoising", total=request.sampling.steps)
        (image,) = request.sampling.sample(
            pipe,
            [request.prompt],
            record=[mean, by_step] if request.at_steps else mean,
            on_step=lambda: progress.update(task, advance=1),
        )
    seconds = time.perf_counter() - start
    # One transfer of each map; everything below reads single values
    found: dict[int | None, Any] = {step: by_step.maps(step).cpu() for step in request.at_steps}
    found = {None: mean.maps().cpu(), **found}
    return Result(image, mean, found, seconds)


def _draw(model: str, request: Request, result: Result) -> None:
    from entropy_attn.plots.maps import map_sheet
    from entropy_attn.recorders.map_files import save_maps

    recorder, steps = result.recorder, request.sampling.steps
    figure = map_sheet(
        result.image,
        {f"mean of {steps} steps" if step is None else f"step {step}": found[0, 0]
         for step, found in result.maps.items()},
        recorder.tokens,
        request.prompt,
        subtitle=_caption(model, request, recorder),
        common_scale=request.color_scale == "all",
    )  # fmt: skip
    figure.savefig(request.out, dpi=FIGURE_DPI)
    if request.csv is not None:
        arrays = {step: found.numpy() for step, found in result.maps.items()}
        save_maps(request.csv, arrays, recorder.branch_names, (recorder.tokens,))
    if request.explore is not None:
        _write_page(model, request, result)


def _write_page(model: str, request: Request, result: Result) -> None:
    from entropy_attn.explore import WordMaps, write_page
    from entropy_attn.explore.word_maps import MEAN

    sampling, recorder = request.sampling, result.recorder
    arrays = {MEAN if step is None else str(step): found[0, 0].numpy() for step, found in result.maps.items()}
    (rows, columns), (height, width) = recorder.map_size, sampling.fitted_size
    facts = {
        "model": model,
        "size": f"{height}x{width} px; maps of {rows}x{columns} tokens",
        "run": f"{sampling.steps} steps, seed {sampling.seed}, guidance scale {sampling.guidance_scale}",
        "scale": repr(sampling.policy),
        "layers": f"{len(recorder.layers)}: {', '.join(recorder.layers)}",
        "versions": ", ".join(f"{name} {text}" for name, text in versions().items() if text),
    }
    assert request.explore is not None
    write_page(request.explore, [], [WordMaps(request.prompt, recorder.tokens, arrays, facts, result.image)])


def _caption(model: str, request: Request, recorder: Any) -> str:
    (rows, columns), (height, width) = recorder.map_size, request.sampling.fitted_size
    return (
        f"{Path(model).name or model}, {height}x{width} px, {request.sampling.steps} steps, "
        f"seed {request.sampling.seed}; attention to the prompt in the {len(recorder.layers)} layers of "
        f"{rows}x{columns} tokens, mean over heads"
    )


def _words(result: Result) -> list[dict[str, Any]]:
    """For each word its mean and highest attention, and where in the map the highest is."""
    recorder, words = result.recorder, []
    for label, positions, values in zip(recorder.tokens, recorder.positions, result.maps[None][0, 0], strict=True):
        row, column = divmod(int(values.argmax()), values.shape[-1])
        entry = {"token": label, "positions": list(positions), "mean": float(values.mean())}
        words.append({**entry, "max": float(values.max()), "max_at": [row, column]})
    return words


def _print(request: Request, running_on: dict[str, Any], result: Result, as_json: bool) -> None:
    sampling, recorder, words = request.sampling, result.recorder, _words(result)
    if not as_json:
        lines = [
            [word["token"], " ".join(map(str, word["positions"])), f"{word['mean']:.3g}", f"{word['max']:.3g}"]
            + word["max_at"]
            for word in words
        ]
        rows, columns = recorder.map_size
        title = (
            f"Attention to each word, mean of {sampling.steps} steps, {rows}x{columns} tokens; "
            "positions, rows and columns count from 0"
        )
        print_table(TABLE, lines, title=title)
        paths = (request.out, request.csv, request.explore)
        files = " and ".join(str(path.resolve()) for path in paths if path is not None)
        print(f"Written to {files} ({result.seconds:.1f} s)")
        return
    done = {
        **running_on,
        "prompt": request.prompt,
        "size": list(sampling.fitted_size),
        "map_size": list(recorder.map_size),
        "layers": list(recorder.layers),
        "tokens": words,
        "at_steps": request.at_steps,
        "colors": request.color_scale,
        "scale": repr(sampling.policy),
        "seed": sampling.seed,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "negative_prompt": sampling.negative_prompt,
        "seconds": result.seconds,
        "out": str(request.out),
        "csv": None if request.csv is None else str(request.csv),
        "explore": None if request.explore is None else str(request.explore),
    }
    print(json.dumps(done, indent=2))
