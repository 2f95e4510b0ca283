"""Loads a pipeline by the name of its model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from entropy_attn import shapes
from entropy_attn.pipelines.checkpoint import INDEX, Checkpoint, find_checkpoint, first_line, resolve
from entropy_attn.shapes.names import embedded

__all__ = ["INDEX", "first_line", "load_pipeline", "quiet_libraries", "resolve"]


def load_pipeline(
    model: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
    revision: str | None = None,
    config: str | None = None,
    offload: str | None = None,
    vae_tiling: bool = False,
    scheduler: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
    anything: bool = False,
) -> Any:
    """Load a pipeline.

    Its kind is read from the small index file, before any weights are downloaded.

    Args:
        model: "shapes" or "shapes:NAME" (an embedded model), a local diffusers folder, a Hub id, or a .safetensors
            file.
        device: device of the pipeline, such as "cuda".
        dtype: dtype of the weights; None is the one in which they were published, see `published_dtype`.
        variant: variant of the files of a folder or Hub id, such as "fp16".
        revision: commit, branch or tag of a Hub id.
        config: folder or Hub id with the configuration of a single file; None lets diffusers infer it.
        offload: "model" or "sequential" keeps only the running parts on the device; None keeps all of them there.
        vae_tiling: decode in tiles.
        scheduler: name of a diffusers scheduler class; it takes over the settings of the pipeline's scheduler.
        loras: (file, folder or Hub id; weight) of each LoRA.
        anything: also load pipelines without a prompt, and of videos.

    Returns:
        The diffusers pipeline.

    Raises:
        ValueError: there is no such model, it is not a text-to-image pipeline that can be routed, or an option does not
            fit it.
        ImportError: diffusers, or peft for `loras`, is not installed.
    """
    if (embedded_name := embedded(model)) is not None:
        for name, given in {"variant": variant, "revision": revision, "config": config}.items():
            if given is not None:
                raise ValueError(f"{name}: expected None for the embedded model, got {given!r}")
        pipe = shapes.load_pipeline(embedded_name, dtype=dtype or torch.float32)
    else:
        checkpoint = find_checkpoint(model, variant=variant, revision=revision, config=config, anything=anything)
        pipe = checkpoint.load(published_dtype(checkpoint, device) if dtype is None else dtype)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        _set_scheduler(pipe, scheduler)
    _add_loras(pipe, loras)
    if vae_tiling:
        vae = getattr(pipe, "vae", None)
        if vae is None or not hasattr(vae, "enable_tiling"):
            raise ValueError(
                f"vae_tiling: expected False, because the VAE of {type(pipe).__name__} has no tiling, got True"
            )
        vae.enable_tiling()
    return _placed(pipe, device, offload)


def published_dtype(checkpoint: Checkpoint, device: str) -> torch.dtype:
    """The dtype to compute in: that of the published weights, if it suits the device.

    bfloat16 stays bfloat16. float16 stays float16 on a GPU and becomes float32 on a CPU. float32 is too large for most
    GPUs: there UNets, which run well in float16, get float16, and transformers, which overflow it, get bfloat16.
    """
    stored = checkpoint.stored_dtype()
    if stored == torch.bfloat16:
        return stored
    if not device.startswith("cuda"):
        return torch.float32
    return torch.float16 if stored == torch.float16 or checkpoint.is_unet else torch.bfloat16


def _set_scheduler(pipe: Any, name: str) -> None:
    import diffusers

    current = type(pipe.scheduler)
    allowed = {each.__name__: each for each in [current, *getattr(pipe.scheduler, "compatibles", [])]}
    if name not in allowed:
        known = isinstance(getattr(diffusers, name, None), type)
        why = f"which does not fit {type(pipe).__name__}" if known else "which is no scheduler of diffusers"
        raise ValueError(f"scheduler: expected one of {', '.join(sorted(allowed))}, got {name!r}, {why}")
    pipe.scheduler = allowed[name].from_config(pipe.scheduler.config)


def _add_loras(pipe: Any, loras: Sequence[tuple[str, float]]) -> None:
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"lora: expected none, because {type(pipe).__name__} loads no LoRA, got {loras!r}")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("lora: expected peft to be installed: pip install 'peft>=0.13'") from error
    names = []
    for number, (source, _) in enumerate(loras):
        path = Path(source).expanduser()
        if not path.exists() and (source.startswith((".", "/", "~")) or path.suffix):
            raise ValueError(f"lora: expected a file, a folder or a Hub id, got {source!r}, which does not exist")
        names.append(f"lora{number}")
        try:
            pipe.load_lora_weights(str(path) if path.exists() else source, adapter_name=names[-1])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"lora: cannot load {source!r}: {first_line(error)}") from error
    pipe.set_adapters(names, [weight for _, weight in loras])


def _placed(pipe: Any, device: str, offload: str | None) -> Any:
    if offload is None:
        return pipe.to(device)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        raise ValueError(f"offload: expected None, 'model' or 'sequential', got {offload!r}")
    return pipe


def quiet_libraries() -> None:
    """Turn off the progress bars and log messages of diffusers, transformers and huggingface_hub."""
    with contextlib.suppress(ImportError):
        import diffusers
        import huggingface_hub
        import transformers

        huggingface_hub.utils.logging.set_verbosity_error()
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
