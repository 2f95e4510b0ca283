"""`entropy-attn generate`: one picture under a scale policy, or the model's own beside it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLE = (
    "Examples:\n\n"
    '  entropy-attn generate --prompt "a red circle and a blue square" --size 96x64 --out circle.png\n\n'
    '  entropy-attn generate --prompt "two red circles" --scale logn:strength=2 --compare --out compare.png\n\n'
    '  entropy-attn generate --prompt "a red circle and a blue square" --guidance tsam --compare --out guided.png\n'
)


def generate(
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="File to write; its folder is made if missing.")] = Path("picture.png"),
    model: Annotated[str, typer.Option(help=options.MODEL_HELP)] = "shapes",
    size: Annotated[str | None, typer.Option(help=f"{options.SIZE_HELP}; by default the training size.")] = None,
    scale: Annotated[str, typer.Option(help=f"{options.SCALE_HELP}.")] = "logn",
    guidance: Annotated[str | None, typer.Option(help=f"{options.GUIDANCE_HELP}.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; by default 4 for shapes, else the pipeline's own.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Put the pipeline's own picture beside ours.")] = False,
    device: Annotated[str, typer.Option(help=options.DEVICE_HELP)] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(options.DTYPES) + ".")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    with options.refusals():
        policy = options.parse_scale(scale)
        wanted = None if size is None else options.parse_size(size)
        method = options.parse_guidance(guidance)
        if compare and scale == "off" and method is None:
            raise ValueError("--compare puts another scale beside 'off': give --scale logn, for example")
        options.check_prompts([prompt])
        options.check_at_least("--seed", seed, 0)
        options.check_at_least("--steps", steps, 1)
        options.check_at_least("--guidance-scale", guidance_scale, 0)
        options.output_picture(out)
        guidance_scale = options.guidance(model, guidance_scale)
        pipe, running_on = options.load(model, device, dtype)

        from ..pipelines import check_size, sample, train_size

        wanted = wanted or train_size(pipe)
        check_size(pipe, wanted)
        ours = scale if method is None else f"{scale} + {guidance}"
        runs = {ours: (policy, method)}
        if compare:
            runs = {"off": (options.parse_scale("off"), None), **runs}
        pictures, seconds = [], {}
        for name, (policy, method) in runs.items():
            start = time.perf_counter()
            pictures += sample(
                pipe,
                [prompt],
                size=wanted,
                scale=policy,
                seed=seed,
                steps=steps,
                guidance_scale=guidance_scale,
                guidance=method,
            )
            seconds[name] = time.perf_counter() - start
        if compare:
            from ..plots import side_by_side

            picture = side_by_side(pictures, [f"original ({wanted[0]}x{wanted[1]} px)", f"ours: {ours}"], title=prompt)
        else:
            picture = pictures[0]
        picture.save(out)
    if as_json:
        done = {
            **running_on,
            "prompt": prompt,
            "size": list(wanted),
            "policies": {name: repr(policy) for name, (policy, _) in runs.items()},
            "guidance": guidance,
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "seconds": seconds,
            "out": str(out),
        }
        print(json.dumps(done, indent=2))
    else:
        print(f"Written to {out.resolve()} ({sum(seconds.values()):.1f} s)")


generate.__doc__ = f"Generate one picture; with --compare, the original and ours side by side.\n\n{EXAMPLE}"
