"""Networks from folders on this machine, with transformers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn


class Loaded(NamedTuple):
    """A network in evaluation mode, with what prepares its inputs."""

    model: Any
    tokenizer: Any
    image_processor: Any


def model_type(name: str, folder: str | Path) -> str:
    """The `model_type` of the config.json in a folder.

    Args:
        name: the argument to name in messages.
        folder: the folder of a network, as `save_pretrained` writes it.

    Raises:
        ValueError: there is no such folder, or no config.json in it that says its type.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{name}: expected a folder with config.json, as save_pretrained writes, got {str(folder)!r}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: expected a model_type in {str(path)!r}, got none") from error
    return str(found)


def load(name: str, folder: str | Path, classes: dict[str, str], device: str = "cpu", images: bool = True) -> Loaded:
    """Load a network with its tokenizer and, if `images`, its image processor.

    Args:
        name: the argument to name in messages.
        folder: the folder of the network, its tokenizer and its image processor.
        classes: {model_type: name of its class in transformers}.
        device: where it computes.
        images: load the image processor, too.

    Raises:
        ImportError: transformers is not installed.
        ValueError: there is no such folder, or it has another kind of network or lacks files.
    """
    kind = model_type(name, folder)
    if kind not in classes:
        what = " or ".join(sorted(classes))
        raise ValueError(f"{name}: expected a {what} network, got {kind} in {str(folder)!r}")
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{name}: expected transformers to be installed: pip install 'entropy_attn[all]'") from error
    try:
        model = getattr(transformers, classes[kind]).from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = None
        if images:
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: expected the files of a {kind} network in {str(folder)!r}: {error}") from error
    return Loaded(_ready(model, device), tokenizer, processor)


def load_text_encoder(name: str, folder: str | Path, device: str = "cpu") -> Loaded:
    """Load any encoder of sentences: a network whose output has `last_hidden_state`, and its tokenizer.

    Args:
        name: the argument to name in messages.
        folder: its folder.
        device: where it computes.

    Raises:
        ImportError: transformers is not installed.
        ValueError: there is no such folder, or it lacks files.
    """
    return load(name, folder, {model_type(name, folder): "AutoModel"}, device, images=False)


def _ready(model: nn.Module, device: str) -> nn.Module:
    return model.to(device).eval()
