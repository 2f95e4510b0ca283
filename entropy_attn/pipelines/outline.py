"""A pipeline with its structure and without its weights, from the configuration files alone."""

from __future__ import annotations

from typing import Any

import torch

from entropy_attn.pipelines.loading import SHAPES, first_line, resolve


def outline_pipeline(model: str) -> Any:
    """The pipeline of `model` with its networks on torch's meta device, and without text encoders and tokenizers.

    model: "shapes" (the embedded one), a local diffusers folder, or a Hub id, of which only configurations are fetched.
    """
    source = _shapes_folder() if model == SHAPES else resolve(model)
    import diffusers

    try:
        index = diffusers.DiffusionPipeline.load_config(source)
        kind = getattr(diffusers, index["_class_name"], None)
        if kind is None:
            raise ValueError(f"diffusers {diffusers.__version__} has no pipeline {index['_class_name']!r}")
        parts = {name: _part(source, name, entry) for name, entry in index.items() if not name.startswith("_")}
        return kind(**parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model {model!r} cannot be outlined: {first_line(error)}") from error


def _part(source: str, name: str, entry: Any) -> Any:
    """One entry of the index: a component, or an option of the pipeline."""
    if not isinstance(entry, (list, tuple)):
        return False if name == "requires_safety_checker" else entry
    import diffusers

    library, class_name = entry
    kind = getattr(diffusers, class_name, None) if library == "diffusers" and class_name else None
    if kind is None or not hasattr(kind, "from_config"):
        return None
    config = kind.load_config(source, subfolder=name)
    if not issubclass(kind, torch.nn.Module):
        return kind.from_config(config)
    with torch.device("meta"):
        return kind.from_config(config)


def _shapes_folder() -> str:
    from entropy_attn import shapes

    return str(shapes.MODEL_DIR)
