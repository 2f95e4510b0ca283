"""Tiny pipelines with the denoisers of `tiny_denoisers`; the prompt's embeddings are ones, unconditional ones zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from tests.support.tiny_denoisers import CASES, TEXT
from tests.support.tiny_models import make_tokenizer, make_vae


@dataclass(frozen=True)
class Pipeline:
    """A tiny pipeline.

    Attributes:
        case: name of its denoiser.
        call: arguments of the pipeline.
        train: T of its image layers without `train_size`.
        off: arguments that turn guidance off.
    """

    kind: str
    case: str
    parts: Callable[[], dict[str, Any]]
    call: Callable[[], dict[str, Any]]
    train: int | None
    off: dict[str, Any]
    component: str = "transformer"

    def make(self) -> Any:
        denoiser = CASES[self.case].make()
        pipe = getattr(diffusers, self.kind)(**{self.component: denoiser, **self.parts()})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe: Any, **options: Any) -> torch.Tensor:
        call = {**self.call(), "generator": torch.Generator().manual_seed(4), **options}
        found = pipe(**{"output_type": "latent", **call}, num_inference_steps=2, return_dict=False)[0]
        if isinstance(found, list):
            return torch.cat([each.flatten() for each in found])
        return torch.as_tensor(found)


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def embeds(width: int, length: int = TEXT, *, mask: Any = None, name: str = "prompt_attention_mask") -> dict[str, Any]:
    found = {
        "prompt_embeds": torch.ones(1, length, width),
        "negative_prompt_embeds": torch.zeros(1, length, width),
    }
    if mask is not None:
        found[name] = found[f"negative_{name}"] = torch.ones(1, length, dtype=mask)
    return found


def pooled(width: int) -> dict[str, Any]:
    return {
        "pooled_prompt_embeds": torch.ones(1, width),
        "negative_pooled_prompt_embeds": torch.zeros(1, width),
    }


def size(height: int = 24, width: int = 16) -> dict[str, Any]:
    return {"height": height, "width": width}


class Flux2Vae:
    """The attributes of an autoencoder that the pipeline of Flux 2 reads even if it decodes nothing."""

    bn = SimpleNamespace(running_mean=torch.zeros(8), running_var=torch.ones(8))
    config = SimpleNamespace(block_out_channels=(1,) * 4, batch_norm_eps=1e-4)


NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_TEXT_2 = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}

PIPELINES: dict[str, Pipeline] = {
    "sd3": Pipeline(
        "StableDiffusion3Pipeline",
        "sd3",
        lambda: {"scheduler": flow(), "vae": make_vae(), **NO_TEXT_2, "text_encoder_3": None, "tokenizer_3": None},
        lambda: {**size(), **embeds(20), **pooled(12), "guidance_scale": 4.0},
        16,
        {"guidance_scale": 1.0},
    ),
    "pixart": Pipeline(
        "PixArtAlphaPipeline",
        "pixart",
        lambda: {"scheduler": diffusers.DDIMScheduler(), "vae": make_vae(), **NO_TEXT},
        lambda: {
            **size(),
            **embeds(20, mask=torch.long),
            "negative_prompt": None,
            "guidance_scale": 4.0,
            "use_resolution_binning": False,
        },
        16,
        {"guidance_scale": 1.0},
    ),
    "flux": Pipeline(
        "FluxPipeline",
        "flux",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT_2},
        lambda: {**size(96, 64), **embeds(20), **pooled(12), "true_cfg_scale": 4.0},
        4096,
        {"true_cfg_scale": 1.0},
    ),
    "chroma": Pipeline(
        "ChromaPipeline",
        "chroma",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20, mask=torch.float32), "guidance_scale": 4.0},
        4096,
        {"guidance_scale": 1.0},
    ),
    "qwen": Pipeline(
        "QwenImagePipeline",
        "qwen",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20, mask=torch.long, name="prompt_embeds_mask"), "true_cfg_scale": 4.0},
        4096,
        {"true_cfg_scale": 1.0},
    ),
    "zimage": Pipeline(
        "ZImagePipeline",
        "zimage",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {
            **size(96, 64),
            "prompt_embeds": [torch.ones(TEXT, 20)],
            "negative_prompt_embeds": [torch.zeros(TEXT, 20)],
            "guidance_scale": 4.0,
        },
        4096,
        {"guidance_scale": 0.0},
    ),
    "lumina": Pipeline(
        "LuminaPipeline",
        "lumina",
        lambda: {"scheduler": flow(), "vae": make_vae(), **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20, mask=torch.bool), "guidance_scale": 4.0},
        16,
        {"guidance_scale": 1.0},
    ),
    "lumina2": Pipeline(
        "Lumina2Pipeline",
        "lumina2",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20, mask=torch.bool), "guidance_scale": 4.0},
        16,
        {"guidance_scale": 1.0},
    ),
    "auraflow": Pipeline(
        "AuraFlowPipeline",
        "auraflow",
        lambda: {"scheduler": flow(), "vae": make_vae(), **NO_TEXT},
        lambda: {**size(), **embeds(20, mask=torch.long), "guidance_scale": 4.0},
        16,
        {"guidance_scale": 1.0},
    ),
    "cogview4": Pipeline(
        "CogView4Pipeline",
        "cogview4",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20), "guidance_scale": 4.0},
        16,
        {"guidance_scale": 1.0},
    ),
    "mochi": Pipeline(
        "MochiPipeline",
        "mochi",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {**size(96, 64), **embeds(16, mask=torch.bool), "num_frames": 7, "guidance_scale": 4.0},
        2 * 30 * 53,
        {"guidance_scale": 1.0},
    ),
    "sana": Pipeline(
        "SanaPipeline",
        "sana",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {
            **size(384, 256),
            **embeds(20, mask=torch.long),
            "negative_prompt": None,
            "guidance_scale": 4.0,
            "use_resolution_binning": False,
        },
        None,
        {"guidance_scale": 1.0},
    ),
    "wan": Pipeline(
        "WanPipeline",
        "wan",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20), "num_frames": 5, "guidance_scale": 4.0},
        2 * 30 * 52,
        {"guidance_scale": 1.0},
    ),
    "ltx": Pipeline(
        "LTXPipeline",
        "ltx",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT},
        lambda: {**size(192, 128), **embeds(20, mask=torch.long), "num_frames": 9, "guidance_scale": 4.0},
        2 * 16 * 22,
        {"guidance_scale": 1.0},
    ),
    "cogvideox": Pipeline(
        "CogVideoXPipeline",
        "cogvideox",
        lambda: {"scheduler": diffusers.CogVideoXDDIMScheduler(), "vae": None, **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20), "num_frames": 9, "guidance_scale": 4.0},
        3 * 16,
        {"guidance_scale": 1.0},
    ),
    "hunyuan-video": Pipeline(
        "HunyuanVideoPipeline",
        "hunyuan-video",
        lambda: {"scheduler": flow(), "vae": None, **NO_TEXT_2},
        lambda: {
            **size(96, 64),
            **embeds(20, mask=torch.long),
            **pooled(12),
            "num_frames": 5,
            "true_cfg_scale": 4.0,
        },
        2 * 45 * 80,
        {"true_cfg_scale": 1.0},
    ),
    "dit": Pipeline(
        "DiTPipeline",
        "dit",
        lambda: {"scheduler": diffusers.DDIMScheduler(), "vae": make_vae()},
        lambda: {"class_labels": [3], "guidance_scale": 4.0},
        16,
        {"guidance_scale": 1.0},
    ),
    "flux2": Pipeline(
        "Flux2KleinPipeline",
        "flux2",
        lambda: {"scheduler": flow(), "vae": Flux2Vae(), **NO_TEXT},
        lambda: {**size(96, 64), **embeds(20), "guidance_scale": 4.0},
        4096,
        {"guidance_scale": 1.0},
    ),
    "hunyuan-dit": Pipeline(
        "HunyuanDiTPipeline",
        "hunyuan-dit",
        lambda: {
            "scheduler": diffusers.DDIMScheduler(),
            "vae": None,
            **NO_TEXT_2,
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        },
        lambda: {
            **size(96, 64),
            **embeds(20, mask=torch.long),
            **{f"{name}_2": value[:, :3] for name, value in embeds(16, mask=torch.long).items()},
            "use_resolution_binning": False,
            "guidance_scale": 4.0,
        },
        16,
        {"guidance_scale": 1.0},
    ),
    "if": Pipeline(
        "IFPipeline",
        "if",
        lambda: {
            "scheduler": diffusers.DDPMScheduler(variance_type="fixed_small", clip_sample=False),
            **NO_TEXT,
            "safety_checker": None,
            "feature_extractor": None,
            "watermarker": None,
            "requires_safety_checker": False,
        },
        lambda: {**size(), **embeds(24), "guidance_scale": 4.0, "output_type": "pt"},
        64,
        {"guidance_scale": 1.0},
        component="unet",
    ),
    "ldm": Pipeline(
        "LDMTextToImagePipeline",
        "ldm",
        lambda: {
            "scheduler": diffusers.DDIMScheduler(clip_sample=False),
            "vqvae": make_vae(),
            "bert": make_bert(),
            "tokenizer": make_tokenizer(),
        },
        lambda: {**size(48, 32), "prompt": "a b c", "guidance_scale": 4.0, "output_type": "np"},
        256,
        {"guidance_scale": 1.0},
        component="unet",
    ),
    "ddpm": Pipeline(
        "DDPMPipeline",
        "unet2d",
        lambda: {"scheduler": diffusers.DDPMScheduler()},
        lambda: {"output_type": "np"},
        64,
        {},
        component="unet",
    ),
}


def make_bert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(2)
    return LDMBertModel(
        LDMBertConfig(
            vocab_size=50,
            max_position_embeddings=77,
            d_model=24,
            encoder_layers=2,
            encoder_attention_heads=2,
            head_dim=8,
            encoder_ffn_dim=32,
        )
    ).eval()
