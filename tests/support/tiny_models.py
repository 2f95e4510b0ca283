"""Tiny random-weight pipelines with the topologies of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 32
TEXT_TOKENS = 7

UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
}
FAMILIES = {
    "sd1": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
    "sdxl": {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 8,
    },
}


def make_unet(family: str = "sd1", seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**{**UNET, **FAMILIES[family], **overrides}).eval()
    with torch.no_grad():  # spread the logits, so that the scale matters
        for name, weight in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight.mul_(3.0)
    return unet


def make_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def make_text_encoder() -> CLIPTextModel:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=49,
    )
    return CLIPTextModel(config).eval()


def make_pipe(family: str = "sd1", seed: int = 0, **unet: Any) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    parts: dict[str, Any] = {
        "vae": make_vae(),
        "text_encoder": make_text_encoder(),
        "tokenizer": None,
        "unet": make_unet(family, seed, **unet),
        "scheduler": DDIMScheduler(num_train_timesteps=100, clip_sample=False, steps_offset=1),
    }
    if family == "sdxl":
        pipe = StableDiffusionXLPipeline(
            **parts, text_encoder_2=None, tokenizer_2=None, force_zeros_for_empty_prompt=False, add_watermarker=False
        )
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    pipe: Any, height: int = 32, width: int = 32, steps: int = 2, batch: int = 1, **options: Any
) -> torch.Tensor:
    """Latents after a few steps; one latent cell has 2x2 pixels."""
    generator = torch.Generator().manual_seed(3)
    embeds = torch.randn(2, batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    options = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "guidance_scale": 5.0, **options}
    if isinstance(pipe, StableDiffusionXLPipeline):
        pooled = torch.randn(2, batch, TEXT_WIDTH, generator=generator)
        options |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
    return pipe(
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(4),
        output_type="latent",
        **options,
    ).images


def denoise(
    unet: UNet2DConditionModel, height: int = 16, width: int = 16, batch: int = 1, timestep: int = 10
) -> torch.Tensor:
    """One call of a plain UNet."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(batch, 4, height, width, generator=generator)
    text = torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    return unet(latents, torch.tensor(timestep), encoder_hidden_states=text).sample


class Spy:
    """A policy that keeps every `CallInfo` and returns `answer(info)`; None is the model's default scale."""

    def __init__(self, answer: Callable[[Any], Any] = lambda info: None):
        self.calls: list[Any] = []
        self.answer = answer

    def __call__(self, info: Any) -> Any:
        self.calls.append(info)
        return self.answer(info)


def make_tokenizer() -> CLIPTokenizer:
    """One token per letter from a to x, so that longer words have several tokens; fits `make_text_encoder`."""
    letters = "abcdefghijklmnopqrstuvwx"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=TEXT_TOKENS)


def make_text_pipe(family: str = "sd1", **unet: Any) -> StableDiffusionPipeline:
    """A pipeline that takes prompts."""
    pipe = make_pipe(family, **unet)
    pipe.register_modules(tokenizer=make_tokenizer())
    return pipe
