"""From a model's name to a pipeline that is ready to sample."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from entropy_attn.pipelines.checkpoint import INDEX, SHAPES, Checkpoint, find_checkpoint, first_line, resolve

__all__ = ["INDEX", "SHAPES", "first_line", "load_pipeline", "quiet_libraries", "resolve"]


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
    """Load `model`: "shapes" (the embedded one), a local diffusers folder, a Hub id, or a single .safetensors file.

    dtype: None is what the checkpoint was published in; see `published_dtype`.
    variant, revision: which files of a folder or Hub id, and of which commit of the latter.
    config: for a single file, the folder or Hub id with its configuration; None is what diffusers takes it for.
    offload: "model" or "sequential", to keep on the device only what runs.
    vae_tiling: decode in tiles.
    scheduler: class of diffusers, which takes over the settings of the pipeline's own.
    loras: (file, folder or Hub id, weight) of each.
    anything: also pipelines without text, or of videos.

    Raises `ValueError` where there is no such model, or none from text to pictures that can be routed; the kind is read
    from the small index file, before any weights are fetched.
    """
    if model == SHAPES:
        for name, given in {"variant": variant, "revision": revision, "config": config}.items():
            if given is not None:
                raise ValueError(f"{name}={given!r}: the embedded model has but one")
        from entropy_attn import shapes

        pipe = shapes.load_pipeline(dtype=dtype or torch.float32)
    else:
        checkpoint = find_checkpoint(model, variant=variant, revision=revision, config=config, anything=anything)
        pipe = checkpoint.load(published_dtype(checkpoint, device) if dtype is None else dtype)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        _set_scheduler(pipe, scheduler)
    _add_loras(pipe, loras)
    if vae_tiling:
        vae = getattr(pipe, "vae", None)
        if not hasattr(vae, "enable_tiling"):
            raise ValueError(f"vae_tiling: the VAE of {type(pipe).__name__} cannot decode in tiles")
        vae.enable_tiling()
    return _placed(pipe, device, offload)


def published_dtype(checkpoint: Checkpoint, device: str) -> torch.dtype:
    """The dtype to compute in: that of the published weights, where the device is made for it.

    bfloat16 stays that everywhere. float16 is what it is on a GPU, and float32 on a CPU. float32 is too large for most
    GPUs, so that there UNets, which were made for it, get float16, and transformers, which overflow it, bfloat16.
    """
    stored = checkpoint.stored_dtype()
    if stored == torch.bfloat16:
        return stored
    if not device.startswith("cuda"):
        return torch.float32
    return torch.float16 if stored == torch.float16 or checkpoint.is_unet else torch.bfloat16


def _set_scheduler(pipe: Any, name: str) -> None:
    import diffusers

    own = type(pipe.scheduler)
    allowed = {each.__name__: each for each in [own, *getattr(pipe.scheduler, "compatibles", [])]}
    if name not in allowed:
        known = isinstance(getattr(diffusers, name, None), type)
        why = f"is made for other models than {type(pipe).__name__}" if known else "is no scheduler of diffusers"
        raise ValueError(f"scheduler {name!r} {why}: give one of {', '.join(sorted(allowed))}")
    pipe.scheduler = allowed[name].from_config(pipe.scheduler.config)


def _add_loras(pipe: Any, loras: Sequence[tuple[str, float]]) -> None:
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"lora: {type(pipe).__name__} takes none")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("lora needs peft: pip install 'peft>=0.13'") from error
    names = []
    for number, (source, _) in enumerate(loras):
        path = Path(source).expanduser()
        if not path.exists() and (source.startswith((".", "/", "~")) or path.suffix):
            raise ValueError(f"lora {source!r}: no such file or folder")
        names.append(f"lora{number}")
        try:
            pipe.load_lora_weights(str(path) if path.exists() else source, adapter_name=names[-1])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"lora {source!r} cannot be loaded: {first_line(error)}") from error
    pipe.set_adapters(names, [weight for _, weight in loras])


def _placed(pipe: Any, device: str, offload: str | None) -> Any:
    if offload is None:
        return pipe.to(device)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        raise ValueError(f"offload={offload!r}: None, 'model' or 'sequential' is needed")
    return pipe


def quiet_libraries() -> None:
    """Keep the progress bars and advice of the libraries below out of a command's own output."""
    with contextlib.suppress(ImportError):
        import diffusers
        import huggingface_hub
        import transformers

        huggingface_hub.utils.logging.set_verbosity_error()
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
