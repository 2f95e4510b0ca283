"""`entropy-attn maps`: one picture, and where it attends to each word of its prompt."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli import options
from entropy_attn.cli.loading import Loading, takes_loading
from entropy_attn.cli.seeds import check_seed
from entropy_attn.cli.tables import Column, print_table

EXAMPLE = (
    "Examples:\n\n"
    '  entropy-attn maps --prompt "a red circle and a blue square" --out maps.png\n\n'
    '  entropy-attn maps --prompt "a red circle and a blue square" --words circle,square --map-size 16 '
    "--at-steps 0,8,24 --csv maps.csv\n"
)
COLOURS = ("word", "all")
TABLE = (
    Column("word", fold=True),
    Column("positions", rank=1, fold=True),
    Column("mean", right=True),
    Column("highest", right=True),
    Column("at row", right=True),
    Column("column", right=True),
)


@takes_loading
def maps(
    loading: Loading,
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="File to write; its folder is made if missing.")] = Path("maps.png"),
    size: Annotated[str | None, typer.Option(help=f"{options.SIZE_HELP}; by default the training size.")] = None,
    words: Annotated[
        str | None,
        typer.Option(help="Words of the prompt or positions in it (0 is the start mark), by commas; by default all."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(hidden=True, help="The older name of --words.")] = None,
    map_size: Annotated[
        str | None,
        typer.Option(
            help="Layers to average, by their ROWSxCOLUMNS in tokens; by default the finest for shapes, else the most "
            "common size."
        ),
    ] = None,
    at_steps: Annotated[
        str | None, typer.Option(help="Denoising steps, from 0, to show in rows below the mean, by commas.")
    ] = None,
    colours: Annotated[
        str,
        typer.Option(
            help="'word': each word has a colour scale of its own, from 0 to the highest attention to it; 'all': one "
            "for all words, to compare them."
        ),
    ] = "word",
    scale: Annotated[str, typer.Option(help=f"{options.SCALE_HELP}.")] = "logn",
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; by default 4 for shapes, else the pipeline's own.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the maps' numbers to this .csv file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    with options.refusals(loading):
        policy = options.parse_scale(scale)
        wanted = None if size is None else options.parse_size(size)
        if words is not None and tokens is not None:
            raise ValueError("--tokens is the older name of --words: give one of them")
        words = tokens if words is None else words
        chosen = None if words is None else _words(words)
        cells = None if map_size is None else options.parse_size(map_size, "--map-size")
        options.check_prompts([prompt])
        if chosen is None and not _has_word(prompt):
            raise ValueError(
                f"--prompt {prompt!r} has no word whose map could be drawn: give one, or its positions with --words"
            )
        if colours not in COLOURS:
            raise ValueError(f"--colours {colours!r}: give one of {', '.join(COLOURS)}")
        check_seed("--seed", seed)
        options.check_at_least("--steps", steps, 1)
        options.check_at_least("--guidance-scale", guidance_scale, 0)
        rows = [] if at_steps is None else _steps(at_steps, steps)
        options.output_picture(out)
        if csv is not None:
            options.output_table(csv)
        guidance_scale = options.guidance(loading.model, guidance_scale)
        pipe, running_on = loading.load()

        from entropy_attn.pipelines import call_options, check_size, sample, train_size
        from entropy_attn.plots.maps import map_sheet
        from entropy_attn.recorders.map_files import save_maps
        from entropy_attn.recorders.maps import MapRecorder

        wanted = wanted or train_size(pipe)
        check_size(pipe, wanted)
        call_options(pipe, [prompt], guidance_scale=guidance_scale, negative_prompt=negative_prompt)
        if cells is None and loading.model == "shapes":  # whose objects are a few tokens wide
            cells = wanted[0] // pipe.vae_scale_factor, wanted[1] // pipe.vae_scale_factor
        mean, apart = MapRecorder(chosen, cells), MapRecorder(chosen, cells, steps=rows or None)
        start = time.perf_counter()
        (picture,) = _with_progress(
            steps,
            lambda on_step: sample(
                pipe,
                [prompt],
                size=wanted,
                scale=policy,
                seed=seed,
                steps=steps,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                record=[mean, apart] if rows else mean,
                on_step=on_step,
            ),
        )
        seconds = time.perf_counter() - start
        # Every number leaves the device here
        by_step = {None: mean.maps().cpu(), **{step: apart.maps(step).cpu() for step in rows}}
        names = {step: f"mean of {steps} steps" if step is None else f"step {step}" for step in by_step}
        figure = map_sheet(
            picture,
            {names[step]: found[0, 0] for step, found in by_step.items()},
            mean.tokens,
            prompt,
            subtitle=_caption(mean, loading.model, wanted, seed, steps),
            common_scale=colours == "all",
        )
        figure.savefig(out, dpi=150)
        if csv is not None:
            arrays = {step: found.numpy() for step, found in by_step.items()}
            save_maps(csv, arrays, mean.branch_names, (mean.tokens,))
    if as_json:
        done = {
            **running_on,
            "prompt": prompt,
            "size": list(wanted),
            "map_size": list(mean.map_size),
            "layers": list(mean.layers),
            "tokens": _summary(mean, by_step[None][0, 0]),
            "at_steps": rows,
            "colours": colours,
            "scale": repr(policy),
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "seconds": seconds,
            "out": str(out),
            "csv": None if csv is None else str(csv),
        }
        print(json.dumps(done, indent=2))
    else:
        lines = [
            [word["token"], " ".join(map(str, word["positions"])), f"{word['mean']:.3g}", f"{word['max']:.3g}"]
            + word["max_at"]
            for word in _summary(mean, by_step[None][0, 0])
        ]
        title = f"Attention to each word, mean of {steps} steps, {mean.map_size[0]}x{mean.map_size[1]} tokens from 0"
        print_table(TABLE, lines, title=title)
        files = " and ".join(str(path.resolve()) for path in (out, csv) if path is not None)
        print(f"Written to {files} ({seconds:.1f} s)")


maps.__doc__ = f"Draw where the picture attends to each word of its prompt.\n\n{EXAMPLE}"


def _words(text: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in options.parse_list("--words", text)]


def _has_word(prompt: str) -> bool:
    """Letters, digits, or what stands for a thing as emoji do; punctuation and signs of arithmetic are no words."""
    return any(unicodedata.category(character) == "So" or character.isalnum() for character in prompt)


def _steps(text: str, count: int) -> list[int]:
    parts = options.parse_list("--at-steps", text)
    if not all(part.isdecimal() and int(part) < count for part in parts):
        raise ValueError(f"--at-steps {text!r}: give steps from 0 to {count - 1}, such as 0,{count - 1}")
    return [int(part) for part in parts]


def _with_progress(steps: int, run: Callable[[Callable[[], None]], Any]) -> Any:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # Only where it can be wiped away again: a refusal is one line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("denoising", total=steps)
        return run(lambda: progress.update(task, advance=1))


def _caption(recorder: Any, model: str, size: options.Size, seed: int, steps: int) -> str:
    rows, columns = recorder.map_size
    return (
        f"{Path(model).name or model}, {size[0]}x{size[1]} px, {steps} steps, seed {seed}; cross-attention of the "
        f"{len(recorder.layers)} layers of {rows}x{columns} tokens, mean over heads"
    )


def _summary(recorder: Any, found: Any) -> list[dict[str, Any]]:
    """Of each word: its mean and highest attention, and where in the map the highest is."""
    words = []
    for label, positions, values in zip(recorder.tokens, recorder.positions, found, strict=True):
        row, column = divmod(int(values.argmax()), values.shape[-1])
        entry = {"token": label, "positions": list(positions), "mean": float(values.mean())}
        words.append({**entry, "max": float(values.max()), "max_at": [row, column]})
    return words
