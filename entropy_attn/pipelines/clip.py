"""Embeddings of images and texts by a CLIP or SigLIP model in a local folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_attn.validation import expected


class Clip:
    """A dual encoder in transformers' format, with its processor.

    Args:
        folder: the model's folder, as `save_pretrained` writes it: weights, config, tokenizer, preprocessor.
        device: where it runs.

    Raises:
        ValueError: the folder has no such model.
        ImportError: transformers is not installed.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        self.folder, self.device = Path(folder), device
        if not (self.folder / "config.json").is_file():
            raise ValueError(expected("clip", "a folder of a CLIP model with config.json", str(folder)))
        from transformers import AutoModel, AutoProcessor

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice to install torchvision
                self.processor: Any = AutoProcessor.from_pretrained(self.folder, local_files_only=True)
                self.model: Any = AutoModel.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"clip: cannot load a model and its processor from {str(folder)!r}: {reason}") from error
        if not hasattr(self.model, "get_image_features") or not hasattr(self.model, "get_text_features"):
            raise ValueError(expected("clip", "a model of images and texts, such as CLIP", type(self.model).__name__))
        self.model = self.model.to(device, torch.float32).eval()

    @torch.inference_mode()
    def images(self, images: Sequence[Any]) -> Tensor:
        """Embeddings of PIL images: (n, dims) float32 of length 1, on the CPU."""
        given = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        return _unit(self.model.get_image_features(**given.to(self.device)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts: (n, dims) float32 of length 1, on the CPU. Longer texts are cut."""
        given = self.processor(text=list(texts), padding="max_length", truncation=True, max_length=self.length,
                               return_tensors="pt")  # fmt: skip
        return _unit(self.model.get_text_features(**given.to(self.device)))

    @property
    def length(self) -> int:
        """Most tokens of a text, with its start and end."""
        return int(self.model.config.text_config.max_position_embeddings)

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model takes."""
        counts = [len(self.processor.tokenizer(text).input_ids) for text in texts]
        return sum(count > self.length for count in counts)


def _unit(found: Any) -> Tensor:
    """transformers 5 returns the projected embedding as `pooler_output`, 4 returns the tensor."""
    embedding: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return torch.nn.functional.normalize(embedding.float(), dim=-1).cpu()
