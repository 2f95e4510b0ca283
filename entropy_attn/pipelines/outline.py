"""A pipeline without weights, built from its configuration files."""

from __future__ import annotations

from typing import Any

import torch

from entropy_attn.pipelines.checkpoint import SHAPES, first_line, read_index, resolve


def outline_pipeline(model: str) -> Any:
    """The pipeline of `model` with its networks on torch's meta device, without text encoders and tokenizers.

    Args:
        model: "shapes" (the embedded model), a local diffusers folder, or a Hub id, of which only configurations are
            downloaded.

    Returns:
        The diffusers pipeline.

    Raises:
        ValueError: there is no such model, or its configuration cannot be read.
    """
    source = _shapes_folder() if model == SHAPES else resolve(model)
    import diffusers

    index = read_index(model, source)
    try:
        kind = getattr(diffusers, index["_class_name"], None)
        if kind is None:
            raise ValueError(f"expected a pipeline of diffusers {diffusers.__version__}, got {index['_class_name']!r}")
        parts = {name: _part(source, name, entry) for name, entry in index.items() if not name.startswith("_")}
        return kind(**parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model: cannot build {model!r} from its configuration: {first_line(error)}") from error


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
