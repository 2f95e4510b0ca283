"""Tiny pipelines for guidance, and a generation with them."""

from __future__ import annotations

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.support.tiny_models import make_pipe, make_text_encoder, make_tokenizer

SCHEDULERS = [
    DDIMScheduler,
    PNDMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
]
DEFAULTS = {"height": 32, "width": 48, "output_type": "latent"}


def draw(pipe, prompt="ab c d", steps: int = 3, seed: int = 4, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {**DEFAULTS, "num_inference_steps": steps, "generator": generator, **options}
    return pipe(prompt, **options).images


def make_scheduler(pipe, scheduler):
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    return scheduler.from_config(pipe.scheduler.config, **options)


def make_xl() -> StableDiffusionXLPipeline:
    parts = make_pipe("sdxl").components
    torch.manual_seed(0)
    parts["text_encoder_2"] = CLIPTextModelWithProjection(
        CLIPTextConfig(**{**make_text_encoder().config.to_dict(), "projection_dim": 32})
    ).eval()
    parts |= {"tokenizer": make_tokenizer(), "tokenizer_2": make_tokenizer()}
    parts["unet"] = UNet2DConditionModel(**{**parts["unet"].config, "cross_attention_dim": 64}).eval()
    pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def footprint(pipe) -> list:
    return [
        type(pipe),
        set(vars(pipe)),
        set(vars(pipe.scheduler)),
        [(type(m), set(vars(m)), len(m._forward_pre_hooks)) for m in pipe.unet.modules()],
    ]
