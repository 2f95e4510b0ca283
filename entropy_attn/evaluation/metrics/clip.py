"""Similarities of images and texts by CLIP: full prompt, minimum object, and text to text through a captioner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from entropy_attn.evaluation.prompt_sets import read_text
from entropy_attn.pipelines.clip import Clip

PLAIN = ("{}",)


class Similarities:
    """Cosine similarities from -1 to 1. The papers print these; torchmetrics' CLIPScore is 100 times as large.

    Args:
        clip: embeds images and texts.
        templates: each prompt is embedded in each of these sentences, at "{}", and the unit vectors are averaged.
            Attend-and-Excite (arXiv 2301.13826) and T-SAM (arXiv 2411.15236) use the 80 templates of CLIP's ImageNet
            evaluation; the default is the prompt alone.

    Raises:
        ValueError: a template has no "{}".
    """

    def __init__(self, clip: Clip, templates: Sequence[str] = PLAIN):
        self.templates = checked_templates(templates)
        self.clip = clip
        self._prompts: dict[str, Tensor] = {}

    def prompt(self, text: str) -> Tensor:
        """The unit vector (d,) of a text in the templates."""
        if text not in self._prompts:
            each = self.clip.texts([template.format(text) for template in self.templates])
            self._prompts[text] = F.normalize(each.mean(0), dim=-1)
        return self._prompts[text]

    def full_prompt(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """The similarity of each image with its prompt.

        Args:
            images: (n, d) from `Clip.images`.
            prompts: n prompts.
        """
        return [float(image @ self.prompt(prompt)) for image, prompt in zip(images, prompts, strict=True)]

    def minimum_object(self, images: Tensor, objects: Sequence[Sequence[str]]) -> list[float]:
        """The similarity of each image with that phrase of its prompt which it resembles least.

        Source: Chefer et al., "Attend-and-Excite", SIGGRAPH 2023, arXiv 2301.13826, section 4: the smaller of the
        similarities with the two parts of the prompt that each name one object.

        Args:
            images: (n, d) from `Clip.images`.
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
            float(caption @ self.prompt(prompt))
            for caption, prompt in zip(self.clip.texts(captions), prompts, strict=True)
        ]


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
