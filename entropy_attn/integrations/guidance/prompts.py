"""The words of a pipeline's prompts, and the attention of its text encoders to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from entropy_attn.guidance.method import Prompt
from entropy_attn.guidance.text import real_tokens
from entropy_attn.integrations.diffusers.models import model_of
from entropy_attn.integrations.diffusers.prompt_hook import text_parts, tokenizer_of
from entropy_attn.integrations.diffusers.target import denoiser_of
from entropy_attn.integrations.transformers import text_self_attention_maps
from entropy_attn.prompts import JoinedText, Text

# The transformers that are guided, with the text encoders of each part of the text that they attend to, in order. The
# encoders of one part have the same tokens. The pooled text of Flux's CLIP is nothing that an image token attends to.
ENCODERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "SD3Transformer2DModel": (("text_encoder", "text_encoder_2"), ("text_encoder_3",)),
    "FluxTransformer2DModel": (("text_encoder_2",),),
}


def prompts_of(pipe: DiffusionPipeline, prompts: Sequence[str], attention: bool) -> list[Prompt]:
    """One `Prompt` per text, as the pipeline tokenizes it. attention: with that of its text encoders."""
    tokenizer = tokenizer_of(pipe)
    if tokenizer is None:
        raise ValueError(f"pipe={type(pipe).__name__} has no tokenizer, so the words of a prompt are not known")
    texts = [Text(prompt, tokenizer) for prompt in prompts]
    tokens = real_tokens(torch.tensor([text.ids for text in texts]), tokenizer.eos_token_id)
    maps = _text_attention(pipe, prompts) if attention else [None] * len(texts)
    return [Prompt(text, tuple(positions), each) for text, positions, each in zip(texts, tokens, maps, strict=True)]


def joint_prompts_of(
    pipe: DiffusionPipeline, prompts: Sequence[str | tuple[str, ...]], length: int, attention: bool
) -> list[Prompt]:
    """The same for the texts that a transformer attends to, of `length` positions together.

    prompts: a text each, or one text for each part of it.
    """
    model = model_of(denoiser_of(pipe))
    parts = text_parts(pipe, model)
    if not any(part.tokenizer is not None for part in parts):
        raise ValueError(f"pipe={type(pipe).__name__} has no tokenizer, so the words of a prompt are not known")
    texts = [JoinedText(prompt, parts, length) for prompt in prompts]
    maps: Any = [None] * len(texts)
    if attention:
        # A part without words, that of a missing T5, is none of the texts' ranges.
        encoders = [
            names for part, names in zip(parts, ENCODERS[model.denoiser], strict=True) if part.tokenizer is not None
        ]
        maps = _joint_attention(pipe, encoders, texts)
    return [Prompt(text, text.real, each, parts=text.ranges) for text, each in zip(texts, maps, strict=True)]


def _joint_attention(pipe: DiffusionPipeline, encoders: Sequence[Sequence[str]], texts: Sequence[JoinedText]) -> Tensor:
    """(B, s, s): each text's mean in the range of its positions, and 0 elsewhere."""
    means = [
        _text_attention(pipe, [text.prompts[number] for text in texts], names, stop - start)
        for number, (names, (start, stop)) in enumerate(zip(encoders, texts[0].ranges, strict=True))
    ]
    whole = means[0].new_zeros(len(texts), len(texts[0]), len(texts[0]))
    for mean, (start, stop) in zip(means, texts[0].ranges, strict=True):
        whole[:, start:stop, start:stop] = mean.to(whole.device)
    return whole


@torch.inference_mode(False)
@torch.no_grad()
def _text_attention(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    encoders: Sequence[str] = ("text_encoder", "text_encoder_2"),
    length: int | None = None,
) -> Tensor:
    """(B, s, s): the mean over heads and layers, and over the encoders: each of SDXL's two counts as one half.

    length: of the text; None is that of each tokenizer.
    """
    means = []
    for encoder_name in encoders:
        tokenizer = getattr(pipe, encoder_name.replace("text_encoder", "tokenizer"), None)
        encoder = getattr(pipe, encoder_name, None)
        if tokenizer is None or encoder is None:
            continue
        encoded = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length if length is None else length,
            truncation=True,
            return_tensors="pt",
        )
        device = pipe._execution_device  # where offloading moves the encoder
        masked = getattr(encoder.config, "use_attention_mask", None)
        mask = encoded.attention_mask.to(device) if masked else None
        _, maps = text_self_attention_maps(encoder, encoded.input_ids.to(device), mask)
        means.append(maps.mean(0))
    if not means:
        raise ValueError(f"pipe={type(pipe).__name__} has no text encoder, whose attention this guidance uses")
    return torch.stack(means).mean(0)
