"""Captions of images by a BLIP network in a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from entropy_attn.pipelines.networks import load

# The defaults of LAVIS for BLIP, with which the code of Attend-and-Excite makes captions
CAPTIONING: dict[str, Any] = {"num_beams": 3, "do_sample": False, "min_length": 10, "max_length": 30}


class Captioner:
    """Captions by a BLIP network, by beam search: the same image always has the same caption.

    Args:
        folder: a `BlipForConditionalGeneration` with its tokenizer and image processor.
        device: where it computes.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `folder` has no BLIP network.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        self.device = device
        self._blip = load("captioner", folder, {"blip": "BlipForConditionalGeneration"}, device)

    @torch.inference_mode()
    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each image."""
        pixels = self._blip.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
        ids = self._blip.model.generate(pixel_values=pixels["pixel_values"].to(self.device), **CAPTIONING)
        return [text.strip() for text in self._blip.tokenizer.batch_decode(ids, skip_special_tokens=True)]
