"""Samples one batch of images from a pipeline, with one scale policy."""

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
    seed: int | Sequence[int],
    steps: int,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    layers: str = "self",
    pictures: bool = True,
    record: Any = None,
    on_step: Callable[[], None] | None = None,
) -> list[Any]:
    """Generate one image per prompt, and leave the pipeline unchanged.

    Each prompt has a separate generator of noise: an image depends on its prompt, size and seed, and not on its batch.

    Args:
        pipe: a diffusers pipeline.
        prompts: the prompts; empty for a pipeline without prompts, or with embeddings among `arguments`.
        size: (height, width) in pixels.
        scale: scale policy, or None.
        seed: seed of the noise of every prompt, or one for each prompt.
        steps: number of denoising steps.
        guidance_scale: classifier-free guidance scale; None keeps the pipeline's default.
        negative_prompt: negative prompt of all images.
        arguments: more arguments of the pipeline's call.
        layers: layers with the scale, see `apply`.
        pictures: decode the images.
        record: recorder, or several, see `apply`.
        on_step: called after every denoising step.

    Returns:
        The images; for a video its middle frame; empty for `pictures=False`.

    Raises:
        ValueError: the pipeline does not take an argument, or the number of seeds is not that of the prompts.
    """
    seeds = [seed] * max(1, len(prompts)) if isinstance(seed, int) else list(seed)
    if len(seeds) != max(1, len(prompts)):
        raise ValueError(f"seed: expected one, or one for each of {max(1, len(prompts))} prompts, got {len(seeds)}")
    options = call_options(
        pipe, prompts, guidance_scale=guidance_scale, negative_prompt=negative_prompt, arguments=arguments
    )
    accepted = call_parameters(pipe)
    generators = [torch.Generator("cpu").manual_seed(each) for each in seeds]
    options["generator"] = generators if prompts else generators[0]
    if prompts:
        options["prompt"] = list(prompts)
    if on_step is not None and "callback_on_step_end" in accepted:

        def step_ended(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return tensors

        options["callback_on_step_end"] = step_ended
    elif on_step is not None and "callback" in accepted:  # its name in old pipelines
        options |= {"callback": lambda *_: on_step(), "callback_steps": 1}
    if fixed_size(pipe) is None:
        options |= {"height": size[0], "width": size[1]}
    if not pictures:
        options.setdefault("output_type", "latent")
    with apply(pipe, scale=scale, record=record, layers=layers):
        output = pipe(num_inference_steps=steps, **options)
    return _images(output) if pictures else []


def call_options(
    pipe: Any,
    prompts: Sequence[str],
    *,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of the pipeline's call, except size, steps, prompt and noise.

    Args:
        pipe: a diffusers pipeline.
        prompts: see `sample`.
        guidance_scale: see `sample`.
        negative_prompt: see `sample`.
        arguments: see `sample`.

    Returns:
        The arguments by name.

    Raises:
        ValueError: the call does not take an argument, or would ignore it.
    """
    accepted = call_parameters(pipe)
    kind = type(pipe).__name__
    options: dict[str, Any] = dict(arguments or {})
    for name in options:
        if name in ("height", "width", "generator", "num_inference_steps", "prompt", "callback_on_step_end"):
            raise ValueError(
                f"arguments: expected none of size, seed, steps and prompts, which the plan sets, got {name!r}"
            )
        if name not in accepted:
            raise ValueError(f"arguments: expected those of {kind}: {', '.join(list(accepted)[1:])}, got {name!r}")
    if prompts and "prompt" not in accepted:
        raise ValueError(f"prompts: expected [], because {kind} takes no prompt, got {list(prompts)!r}")
    if not prompts and "prompt" in accepted and not any("embeds" in name for name in options):
        raise ValueError(f"prompts: expected at least one for {kind}, or embeddings among the arguments, got []")
    if guidance_scale is not None:
        if "guidance_scale" not in accepted:
            raise ValueError(f"guidance_scale: expected None, because {kind} takes none, got {guidance_scale}")
        options["guidance_scale"] = guidance_scale
    if negative_prompt is not None:
        if "negative_prompt" not in accepted:
            raise ValueError(f"negative_prompt: expected None, because {kind} takes none, got {negative_prompt!r}")
        for name in ("true_cfg_scale", "guidance_scale"):  # if both, the first one uses the negative prompt
            if name in accepted:
                given = options.get(name, accepted[name].default)
                if isinstance(given, (int, float)) and given <= 1:
                    raise ValueError(
                        f"{name}: expected more than 1 with negative_prompt={negative_prompt!r}, got {given:g}"
                    )
                break
        options["negative_prompt"] = [negative_prompt] * len(prompts) if prompts else negative_prompt
    if "use_resolution_binning" in accepted:  # PixArt and others would generate another size and resize
        options["use_resolution_binning"] = False
    return options


def takes_prompt(pipe: Any) -> bool:
    """Whether the pipeline's call takes a prompt."""
    return "prompt" in call_parameters(pipe)


def _images(output: Any) -> list[Any]:
    if hasattr(output, "images"):
        return list(output.images)
    return [frames[len(frames) // 2] for frames in output.frames]
