"""From a model's name to a pipeline that is ready to sample, and the picture sizes that it can take."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import Any

import torch

SHAPES = "shapes"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_INDEX = "model_index.json"


def load_pipeline(model: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load `model`: "shapes" (the embedded one), a local diffusers folder, or a Hub id.

    Raises `ValueError` where there is no such model, or none from text to pictures that can be routed; the kind is read
    from the small index file, before any weights are fetched.
    """
    if model == SHAPES:
        from .. import shapes

        pipe = shapes.load_pipeline(dtype=dtype)
    else:
        source = resolve(model)
        _check_kind(model, source)
        from diffusers import DiffusionPipeline

        from ..integrations.versions import dtype_argument

        try:
            pipe = DiffusionPipeline.from_pretrained(source, **dtype_argument(dtype))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"model {model!r} cannot be loaded: {first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def size_multiple(pipe: Any) -> int:
    """Both sides of a picture must be a multiple of this: pixels a latent cell, and cells that the denoiser joins.

    A UNet halves at every downsampling, a transformer takes patches. diffusers' own pipelines also insist on a multiple
    of 8, whatever the VAE.
    """
    from ..integrations.models import latent_factor

    denoiser, model = _denoiser(pipe)
    if model.halves:
        joined = 2 ** sum(getattr(block, "downsamplers", None) is not None for block in denoiser.down_blocks)
    else:
        joined = model.cells_a_token(denoiser.config)
    return math.lcm(8, latent_factor(pipe) * joined)


def train_size(pipe: Any) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that the model was trained on.

    Raises `ValueError` where neither the pipeline nor its configuration says it.
    """
    from ..integrations.models import latent_factor

    denoiser, model = _denoiser(pipe)
    cells = model.train_size(denoiser, pipe)
    if cells is None:
        raise ValueError(f"{type(pipe).__name__} does not say at which size it was trained: give the sizes")
    return cells[0] * latent_factor(pipe), cells[1] * latent_factor(pipe)


def _denoiser(pipe: Any) -> tuple[Any, Any]:
    """The denoiser and its row of the table."""
    from ..integrations.models import model_of

    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    return denoiser, model_of(denoiser)


def check_size(pipe: Any, size: tuple[int, int]) -> None:
    """Raise `ValueError` for a (height, width) that the pipeline cannot generate, naming the nearest that it can."""
    multiple = size_multiple(pipe)
    if any(side < 1 or side % multiple for side in size):
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        raise ValueError(f"size {size[0]}x{size[1]}: both sides must be multiples of {multiple} px, for example {near}")


def resolve(model: str) -> str:
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / _INDEX).is_file():
            raise ValueError(f"model {model!r} is a folder without {_INDEX}, so not a diffusers pipeline")
        return str(path)
    looks_local = path.exists() or model.startswith((".", "~", os.sep)) or not _HUB_ID.fullmatch(model)
    if looks_local:
        raise ValueError(f"unknown model {model!r}: no such folder; give {SHAPES!r}, a diffusers folder or a Hub id")
    return model


def _check_kind(model: str, source: str) -> None:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ImportError(f"model {model!r} needs diffusers: pip install 'entropy-attn[diffusers]'") from error
    try:
        index = DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"unknown model {model!r}: not {SHAPES!r}, not a folder, not had from the Hub ({first_line(error)})"
        ) from error
    from ..integrations.models import MODELS

    kind = index.get("_class_name", "pipeline of unknown kind")
    arguments = _call_arguments(kind)
    served = [row.denoiser for row in MODELS]
    part = index.get("unet") or index.get("transformer") or (None, None)
    two = (index.get("transformer_2") or (None, None))[1]
    reasons = {
        "which has no VAE": not (index.get("vae") or index.get("vqvae")),
        f"whose denoiser is none of {', '.join(served)}": part[1] not in served,
        "which has two denoisers": two is not None,
        "which takes no prompt": "prompt" not in arguments,
        "which makes videos": "num_frames" in arguments,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"model {model!r} is a {kind}, {reason}: a pipeline from text to pictures is needed")


def _call_arguments(kind: str) -> list[str]:
    import inspect

    import diffusers

    pipeline = getattr(diffusers, kind, None)
    return [] if pipeline is None else list(inspect.signature(pipeline.__call__).parameters)


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


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
