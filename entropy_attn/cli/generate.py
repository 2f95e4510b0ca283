"""`entropy-attn generate`: one picture under a scale policy, or the model's own beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from entropy_attn.cli import options
from entropy_attn.cli.loading import Loading, takes_loading
from entropy_attn.cli.seeds import check_seed

EXAMPLE = (
    "Examples:\n\n"
    '  entropy-attn generate --prompt "a red circle and a blue square" --size 96x64 --out circle.png\n\n'
    '  entropy-attn generate --prompt "two red circles" --scale logn:strength=2 --compare --out compare.png\n\n'
    '  entropy-attn generate --prompt "a red circle and a blue square" --guidance tsam --compare --out guided.png\n\n'
    '  entropy-attn generate --prompt "a red circle and a blue square" --guidance tsam:alpha=10 --show-maps maps.png\n'
)
SHEET_DPI = 110


@takes_loading
def generate(
    loading: Loading,
    prompt: Annotated[
        list[str], typer.Option(help="What to draw; given several times, one picture each, in files numbered from 0.")
    ],
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw, in every picture.")] = None,
    out: Annotated[Path, typer.Option(help="File to write; its folder is made if missing.")] = Path("picture.png"),
    size: Annotated[str | None, typer.Option(help=f"{options.SIZE_HELP}; by default the training size.")] = None,
    scale: Annotated[str, typer.Option(help=f"{options.SCALE_HELP}.")] = "logn",
    guidance: Annotated[str | None, typer.Option(help=f"{options.GUIDANCE_HELP}.")] = None,
    show_maps: Annotated[
        Path | None,
        typer.Option(
            help="Also write this picture of what --guidance did: every word's map without and with it, the matrices "
            "it compares, and its loss at every step. Generates once more, unguided."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; by default 4 for shapes, else the pipeline's own.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Put the pipeline's own picture beside ours.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    with options.refusals(loading, len(prompt)):
        policy = options.parse_scale(scale)
        wanted = None if size is None else options.parse_size(size)
        method = options.parse_guidance(guidance)
        if show_maps is not None and method is None:
            raise ValueError("--show-maps draws what a guidance does: give --guidance tsam with it")
        if show_maps is not None and show_maps.resolve() == out.resolve():
            raise ValueError(f"--show-maps {str(show_maps)!r} is --out as well: give each a file of its own")
        if compare and scale == "off" and method is None:
            raise ValueError("--compare puts another scale beside 'off': give --scale logn, for example")
        options.check_prompts(prompt)
        if show_maps is not None and len(prompt) > 1:
            raise ValueError("--show-maps draws one picture: give one --prompt")
        check_seed("--seed", seed)
        options.check_at_least("--steps", steps, 1)
        options.check_at_least("--guidance-scale", guidance_scale, 0)
        if method is not None and not any(step < steps for step in method.steps):
            raise ValueError(f"--guidance {guidance}: none of its steps is one of the {steps} of --steps")
        options.output_picture(out)
        if show_maps is not None:
            options.output_picture(show_maps, "--show-maps")
        guidance_scale = options.guidance(loading.model, guidance_scale)
        pipe, running_on = loading.load()

        from entropy_attn.integrations.guidance.prompts import prompts_of
        from entropy_attn.pipelines import attach, call_options, check_guided, check_size, sample, train_size

        wanted = wanted or train_size(pipe)
        check_size(pipe, wanted, len(prompt))
        call_options(pipe, prompt, guidance_scale=guidance_scale, negative_prompt=negative_prompt)
        if method is not None:
            check_guided(pipe)
        if show_maps is not None and not method.applies_to(prompts_of(pipe, prompt, attention=False)[0]):
            raise ValueError(f"--show-maps: the prompt {prompt[0]!r} has too few words to be guided: give two at least")
        ours = scale if method is None else f"{scale} + {guidance}"
        runs = {ours: (policy, method)}
        if show_maps is not None:  # at alpha=0 the picture is the unguided one, and its maps and loss are measured
            runs = {"unguided": (policy, dataclasses.replace(method, alpha=0.0)), **runs}
        if compare:
            runs = {"off": (options.parse_scale("off"), None), **runs}
        pictures, handles, seconds = {}, {}, {}
        for name, (policy, method) in runs.items():
            start = time.perf_counter()
            with contextlib.ExitStack() as guided:
                if method is not None:
                    handles[name] = guided.enter_context(attach(pipe, method))
                pictures[name] = sample(
                    pipe,
                    prompt,
                    size=wanted,
                    scale=policy,
                    seed=seed,
                    steps=steps,
                    guidance_scale=guidance_scale,
                    negative_prompt=negative_prompt,
                )
            seconds[name] = time.perf_counter() - start
        files = _files(out, len(prompt))
        for number, (text, file) in enumerate(zip(prompt, files, strict=True)):
            picture = pictures[ours][number]
            if compare:
                from entropy_attn.plots import side_by_side

                captions = [f"original ({wanted[0]}x{wanted[1]} px)", f"ours: {ours}"]
                picture = side_by_side([pictures["off"][number], picture], captions, title=text)
            picture.save(file)
        if show_maps is not None:
            from entropy_attn.plots.guidance import guidance_sheet

            figure = guidance_sheet(
                handles[ours],
                [pictures["unguided"][0], pictures[ours][0]],
                unguided=handles["unguided"],
                subtitle=_caption(handles[ours], loading.model, wanted, seed, steps, guidance),
            )
            figure.savefig(show_maps, dpi=SHEET_DPI)
    if as_json:
        done = {
            **running_on,
            "prompts": prompt,
            "negative_prompt": negative_prompt,
            "size": list(wanted),
            "policies": {name: repr(policy) for name, (policy, _) in runs.items()},
            "guidance": guidance,
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "seconds": seconds,
            "out": str(out),
            "files": [str(file) for file in files],
            "show_maps": None if show_maps is None else str(show_maps),
            "losses": {name: [[step, float(loss)] for step, loss in each.losses] for name, each in handles.items()},
        }
        print(json.dumps(done, indent=2))
    else:
        written = " and ".join(str(path.resolve()) for path in (*files, show_maps) if path is not None)
        print(f"Written to {written} ({sum(seconds.values()):.1f} s)")


generate.__doc__ = (
    f"Generate a picture of each prompt; with --compare, the original and ours side by side.\n\n{EXAMPLE}"
)


def _files(out: Path, count: int) -> list[Path]:
    """One file a picture; of several, numbered from 0."""
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(count)]


def _caption(handle: Any, model: str, size: options.Size, seed: int, steps: int, guidance: str) -> str:
    rows, columns = handle.maps.shape[1:3]
    return (
        f"{Path(model).name or model}, {size[0]}x{size[1]} px, {steps} steps, seed {seed}, {guidance}; maps of "
        f"the layers of {rows}x{columns} tokens at step {handle.losses[-1][0]}, each word in its own colour scale"
    )
