"""The words of a pipeline's prompts, and the attention of its text encoders to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from entropy_attn.guidance.method import Prompt
from entropy_attn.guidance.text import real_tokens
from entropy_attn.integrations.diffusers.prompt_hook import tokenizer_of
from entropy_attn.integrations.transformers import text_self_attention_maps
from entropy_attn.prompts import Text


def prompts_of(pipe: DiffusionPipeline, prompts: Sequence[str], attention: bool) -> list[Prompt]:
    """One `Prompt` per text, as the pipeline tokenizes it. attention: with that of its text encoders."""
    tokenizer = tokenizer_of(pipe)
    if tokenizer is None:
        raise ValueError(f"pipe={type(pipe).__name__} has no tokenizer, so the words of a prompt are not known")
    texts = [Text(prompt, tokenizer) for prompt in prompts]
    tokens = real_tokens(torch.tensor([text.ids for text in texts]), tokenizer.eos_token_id)
    maps = _text_attention(pipe, prompts) if attention else [None] * len(texts)
    return [Prompt(text, tuple(positions), each) for text, positions, each in zip(texts, tokens, maps, strict=True)]


@torch.inference_mode(False)
@torch.no_grad()
def _text_attention(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """(B, s, s): the mean over heads and layers, and over the encoders: each of SDXL's two counts as one half."""
    means = []
    for tokenizer_name, encoder_name in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        tokenizer, encoder = getattr(pipe, tokenizer_name, None), getattr(pipe, encoder_name, None)
        if tokenizer is None or encoder is None:
            continue
        encoded = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
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
