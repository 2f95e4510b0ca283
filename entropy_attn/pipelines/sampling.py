"""One batch of pictures from a pipeline, under one scale policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from entropy_attn.integrations.diffusers import apply
from entropy_attn.pipelines.sizes import call_parameters, fixed_size


def sample(
    pipe: Any,
    prompts: Sequence[str],
    *,
    size: tuple[int, int],
    scale: Any,
    seed: int,
    steps: int,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    layers: str = "self",
    pictures: bool = True,
    record: Any = None,
    on_step: Callable[[], None] | None = None,
) -> list[Any]:
    """Generate one picture a prompt at `size` = (height, width); the pipeline is as it was when this returns.

    Every prompt starts from its own noise seeded with `seed`, so that a picture depends on its prompt, size and seed
    only, and not on the batch it was made in. `guidance_scale=None` keeps the pipeline's default. Without prompts the
    pipeline takes none, or has its embeddings among `arguments`, which are passed on as they are. Of a video the middle
    frame is given. With `pictures=False` nothing is decoded and the list is empty.
    """
    options = call_options(
        pipe, prompts, guidance_scale=guidance_scale, negative_prompt=negative_prompt, arguments=arguments
    )
    accepted = call_parameters(pipe)
    generators = [torch.Generator("cpu").manual_seed(seed) for _ in prompts or [None]]
    options["generator"] = generators if prompts else generators[0]
    if prompts:
        options["prompt"] = list(prompts)
    if on_step is not None and "callback_on_step_end" in accepted:

        def step_ended(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return tensors

        options["callback_on_step_end"] = step_ended
    elif on_step is not None and "callback" in accepted:  # as it was called before
        options |= {"callback": lambda *_: on_step(), "callback_steps": 1}
    if fixed_size(pipe) is None:
        options |= {"height": size[0], "width": size[1]}
    if not pictures:
        options.setdefault("output_type", "latent")
    with apply(pipe, scale=scale, record=record, layers=layers):
        output = pipe(num_inference_steps=steps, **options)
    return _pictures(output) if pictures else []


def call_options(
    pipe: Any,
    prompts: Sequence[str],
    *,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of the pipeline's call but for size, steps and noise.

    Raises `ValueError` for what the call does not take, or would pass over.
    """
    accepted = call_parameters(pipe)
    kind = type(pipe).__name__
    options: dict[str, Any] = dict(arguments or {})
    for name in options:
        if name in ("height", "width", "generator", "num_inference_steps", "prompt", "callback_on_step_end"):
            raise ValueError(f"arguments: {name!r} is set by the size, seed, steps or prompts of the plan")
        if name not in accepted:
            raise ValueError(f"arguments: {kind} takes no {name!r}; it takes {', '.join(list(accepted)[1:])}")
    if prompts and "prompt" not in accepted:
        raise ValueError(f"prompts={list(prompts)!r}: {kind} takes no prompt: give prompts=[]")
    if not prompts and "prompt" in accepted and not any("embeds" in name for name in options):
        raise ValueError(f"prompts is empty: {kind} needs a prompt, or its embeddings among the arguments")
    if guidance_scale is not None:
        if "guidance_scale" not in accepted:
            raise ValueError(f"guidance_scale={guidance_scale}: {kind} takes none")
        options["guidance_scale"] = guidance_scale
    if negative_prompt is not None:
        if "negative_prompt" not in accepted:
            raise ValueError(f"negative_prompt={negative_prompt!r}: {kind} takes none")
        for name in ("true_cfg_scale", "guidance_scale"):  # of two, the first is the one with a negative prompt
            if name in accepted:
                given = options.get(name, accepted[name].default)
                if isinstance(given, (int, float)) and given <= 1:
                    raise ValueError(
                        f"negative_prompt={negative_prompt!r} changes nothing at {name}={given:g}: more than 1 is "
                        "needed"
                    )
                break
        options["negative_prompt"] = [negative_prompt] * len(prompts) if prompts else negative_prompt
    if "use_resolution_binning" in accepted:  # PixArt and others would draw at a size of their own, and resize
        options["use_resolution_binning"] = False
    return options


def takes_prompt(pipe: Any) -> bool:
    return "prompt" in call_parameters(pipe)


def _pictures(output: Any) -> list[Any]:
    if hasattr(output, "images"):
        return list(output.images)
    return [frames[len(frames) // 2] for frames in output.frames]
