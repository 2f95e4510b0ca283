"""TIFA: a network answers questions about an image; the share of right answers is the image's score.

Source: Hu et al., "TIFA: Accurate and Interpretable Text-to-Image Faithfulness Evaluation with Question Answering",
ICCV 2023, arXiv 2303.11897.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from entropy_attn.evaluation.metrics.local_models import load, load_text_encoder, model_type
from entropy_attn.evaluation.prompt_sets import PromptSet, parse_json, read_text

CLASSES = {"blip": "BlipForQuestionAnswering", "vilt": "ViltForQuestionAnswering"}
MOST_TOKENS = 50  # of an answer, as in TIFA's code
TEXTS = ("id", "question", "answer")


@dataclass(frozen=True)
class Question:
    """A question about the image of one prompt.

    Attributes:
        question: the question.
        choices: the possible answers.
        answer: the right one of them.
        kind: what it asks about, such as "color"; TIFA's element_type.
    """

    question: str
    choices: tuple[str, ...]
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer to a question.

    Attributes:
        free: what the network said.
        choice: the choice it was mapped to; empty if none.
        right: whether that is the right one.
    """

    free: str
    choice: str
    right: bool


def read_questions(path: str | Path, prompts: PromptSet) -> dict[str, tuple[Question, ...]]:
    """Read TIFA's questions for a prompt set.

    Args:
        path: JSON, a list of {"id", "question", "choices", "answer", "element_type"}.
        prompts: the prompts; "id" is that of a prompt.

    Returns:
        {id: its questions}, for the prompts that have any. Questions about other prompts are left out.

    Raises:
        ValueError: the file is missing or has another form, a question has no right choice, or no question is about a
            prompt of the set.
    """
    path = Path(path)
    entries = parse_json(read_text(path), path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a JSON list of questions, got {type(entries).__name__}")
    found: dict[str, dict[str, Question]] = {}
    for number, entry in enumerate(entries):
        identifier, question = _question(entry, f"{path}: entry {number}")
        found.setdefault(identifier, {})[question.question] = question  # of equal questions the last one counts
    known = {item.id for item in prompts.items}
    chosen = {identifier: tuple(each.values()) for identifier, each in found.items() if identifier in known}
    if not chosen:
        example = next(iter(found), None)
        raise ValueError(
            f"{path}: expected questions about the prompts of {prompts.name}, whose ids are like "
            f"{prompts.items[0].id!r}, got ids like {example!r}"
        )
    return chosen


def _question(entry: Any, where: str) -> tuple[str, Question]:
    if not isinstance(entry, Mapping) or any(not isinstance(entry.get(key), str) for key in TEXTS):
        raise ValueError(f"{where}: expected an object with {', '.join(TEXTS)} and choices, got {entry!r}")
    choices = entry.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: choices: expected a list of texts, got {choices!r}")
    if entry["answer"] not in choices:
        raise ValueError(f"{where}: answer: expected one of {choices}, got {entry['answer']!r}")
    kind = str(entry.get("element_type", ""))
    return entry["id"], Question(entry["question"], tuple(choices), entry["answer"], kind)


class VQA:
    """Answers questions about images.

    Args:
        folder: a `BlipForQuestionAnswering` or `ViltForQuestionAnswering` with tokenizer and image processor.
        device: where it computes.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `folder` has no such network.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        self.device = device
        self._kind = model_type("vqa", folder)
        self._vqa = load("vqa", folder, CLASSES, device)

    @torch.inference_mode()
    def answer(self, image: Image.Image, question: str) -> str:
        """The network's answer to a question about an image, in its words."""
        model, tokenizer, processor = self._vqa
        length = model.config.max_position_embeddings if self._kind == "vilt" else tokenizer.model_max_length
        inputs = dict(tokenizer(question, truncation=True, max_length=min(length, 512), return_tensors="pt"))
        inputs |= dict(processor(images=[image.convert("RGB")], return_tensors="pt"))
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if self._kind == "vilt":
            return str(model.config.id2label[int(model(**inputs).logits[0].argmax())])
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        ids = model.generate(**inputs, do_sample=False, num_beams=1, max_length=MOST_TOKENS)
        return str(tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


class ChoiceEncoder:
    """Maps a free answer to the choice whose embedding has the largest cosine similarity with the answer's.

    An embedding is the mean of the last hidden states over the tokens, as in TIFA's code, which uses
    sentence-transformers/all-mpnet-base-v2.

    Args:
        folder: an encoder of sentences with its tokenizer.
        device: where it computes.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `folder` has no network.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        self.device = device
        self._encoder = load_text_encoder("choice_encoder", folder, device)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (n, d) float32."""
        inputs = self._encoder.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(
            self.device
        )
        hidden = self._encoder.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][..., None]
        return F.normalize((hidden * mask).sum(1) / mask.sum(1).clamp_min(1), dim=-1)

    def closest(self, answer: str, choices: Sequence[str]) -> str:
        """The choice that is closest to an answer; of equals the first one."""
        vectors = self.embed([answer, *choices])
        return choices[int((vectors[1:] @ vectors[0]).argmax())]


def judged(free: str, question: Question, encoder: ChoiceEncoder | None) -> Answer:
    """An answer mapped to the choices of its question.

    An answer that is one of the choices stays. Another one goes to the closest choice; without an encoder it counts as
    wrong, which makes scores lower than TIFA's.

    Args:
        free: the network's answer.
        question: the question.
        encoder: finds the closest choice; None needs an exact match.

    Returns:
        The answer.
    """
    choice = free
    if free not in question.choices:
        choice = "" if encoder is None else encoder.closest(free, question.choices)
    return Answer(free, choice, choice == question.answer)
