"""Similarity of images and texts by CLIP: full prompt, minimum object, and text to text through a captioner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from entropy_attn.evaluation.metrics.local_models import load
from entropy_attn.evaluation.prompt_sets import read_text

PLAIN = ("{}",)
# The defaults of LAVIS for BLIP, with which the code of Attend-and-Excite makes captions
CAPTIONING: dict[str, Any] = {"num_beams": 3, "do_sample": False, "min_length": 10, "max_length": 30}


class CLIP:
    """Embeddings by a CLIP network, as unit vectors: their dot products are cosine similarities from -1 to 1.

    The papers print cosines (0.33); torchmetrics' CLIPScore is 100 times as large.

    Args:
        folder: a `CLIPModel` with its tokenizer and image processor.
        templates: each text is embedded in each of these sentences, at "{}", and the unit vectors are averaged.
            Attend-and-Excite (arXiv 2301.13826) and T-SAM (arXiv 2411.15236) use the 80 templates of CLIP's ImageNet
            evaluation; the default is the text alone.
        device: where it computes.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `folder` has no CLIP network, or a template has no "{}".
    """

    def __init__(self, folder: str | Path, templates: Sequence[str] = PLAIN, device: str = "cpu"):
        self.templates = checked_templates(templates)
        self.device = device
        self._clip = load("clip", folder, {"clip": "CLIPModel"}, device)
        self._prompts: dict[str, Tensor] = {}

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (n, d) float32 of images."""
        model = self._clip.model
        pixels = self._clip.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
        pooled = model.vision_model(pixel_values=pixels["pixel_values"].to(self.device)).pooler_output
        return F.normalize(model.visual_projection(pooled).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, d) float32 of texts, without templates; texts are cut at the network's length."""
        model = self._clip.model
        length = model.config.text_config.max_position_embeddings
        inputs = self._clip.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        pooled = model.text_model(
            input_ids=inputs["input_ids"].to(self.device), attention_mask=inputs["attention_mask"].to(self.device)
        ).pooler_output
        return F.normalize(model.text_projection(pooled).float(), dim=-1)

    def prompt(self, text: str) -> Tensor:
        """The unit vector (d,) of a text in the templates."""
        if text not in self._prompts:
            each = self.texts([template.format(text) for template in self.templates])
            self._prompts[text] = F.normalize(each.mean(0), dim=-1)
        return self._prompts[text]

    def full_prompt(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """The similarity of each image with its prompt.

        Args:
            images: (n, d) from `images`.
            prompts: n prompts.
        """
        return [float(image @ self.prompt(prompt)) for image, prompt in zip(images, prompts, strict=True)]

    def minimum_object(self, images: Tensor, objects: Sequence[Sequence[str]]) -> list[float]:
        """The similarity of each image with that phrase of its prompt which it resembles least.

        Source: Chefer et al., "Attend-and-Excite", SIGGRAPH 2023, arXiv 2301.13826, section 4: the smaller of the
        similarities with the two parts of the prompt that each name one object.

        Args:
            images: (n, d) from `images`.
            objects: for each image a phrase for each object, at least one.
        """
        return [
            min(float(image @ self.prompt(phrase)) for phrase in phrases)
            for image, phrases in zip(images, objects, strict=True)
        ]

    def text_to_text(self, captions: Sequence[str], prompts: Sequence[str]) -> list[float]:
        """The similarity of the caption that a captioner gave each image with the image's prompt.

        Source: Chefer et al., arXiv 2301.13826, section 4: the prompt in the templates, the caption without.

        Args:
            captions: n captions.
            prompts: n prompts.
        """
        return [
            float(caption @ self.prompt(prompt)) for caption, prompt in zip(self.texts(captions), prompts, strict=True)
        ]


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


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates from a file, one a line, each with "{}".

    Args:
        path: the file.

    Returns:
        The templates.

    Raises:
        ValueError: the file is missing or has no template, or a line has no "{}".
    """
    lines = read_text(Path(path)).splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip() and not _is_template(line):
            raise ValueError(f"{path}: line {number}: expected a template with one '{{}}', got {line!r}")
    return checked_templates([line.strip() for line in lines if line.strip()])


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """At least one template, each with "{}" once and no other braces."""
    if isinstance(templates, str) or not templates or not all(map(_is_template, templates)):
        raise ValueError(f"templates: expected texts that each have '{{}}' once, got {templates!r}")
    return tuple(templates)


def _is_template(text: object) -> bool:
    return isinstance(text, str) and text.count("{}") == 1 and text.count("{") == text.count("}") == 1
