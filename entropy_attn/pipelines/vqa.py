"""Answers to questions about images, and embeddings of sentences, by networks in local folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from entropy_attn.pipelines.networks import load, load_text_encoder, model_type

CLASSES = {"blip": "BlipForQuestionAnswering", "vilt": "ViltForQuestionAnswering"}
MOST_TOKENS = 50  # of an answer, as in TIFA's code


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


class SentenceEncoder:
    """Embeds sentences: the mean of the last hidden states over the tokens, as in TIFA's code.

    TIFA uses sentence-transformers/all-mpnet-base-v2.

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
        """The choice whose embedding has the largest cosine with that of an answer; of equals the first one."""
        vectors = self.embed([answer, *choices])
        return choices[int((vectors[1:] @ vectors[0]).argmax())]
