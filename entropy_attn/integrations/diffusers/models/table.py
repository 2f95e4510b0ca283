"""The denoisers whose attention is routed, one row each: what there is to know of a model to route it.

docs/models.md is written from this table, and tests/integrations/diffusers/test_models.py runs every row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from entropy_attn.integrations.diffusers.models import image_size as pictures
from entropy_attn.integrations.diffusers.models.image_size import Reader

# "text": the text attends to itself. "call": self or cross, as the arguments of the call say.
LayerKind = Literal["self", "cross", "joint", "text", "call"]

# Of the batch, or of the calls of one step.
Guidance = Literal["uncond, cond", "cond, uncond", "calls: cond, uncond", "none"]

# (denoiser, pipeline or None) -> latent cells (rows, columns), or None where it is not known
TrainSize = Callable[[nn.Module, Any], "tuple[int, int] | None"]


@dataclass(frozen=True)
class LayerRule:
    """The layers whose name a regular expression finds.

    kind: what they attend to, or None for layers that are not routed, for the reason in `note`.
    text: where the text lies among the keys of joint attention, and among its queries if they have any.
    ragged: the text of a shorter prompt leaves its place to the picture, so that pictures of one batch lie differently.
    per_sample: the model makes one attention call for each sample of the batch.
    picture_first: a layer with keys of its own for a picture prompt attends to that before it does to the text.
    """

    pattern: str
    kind: LayerKind | None
    text: Literal["first", "last"] | None = None
    ragged: bool = False
    per_sample: bool = False
    picture_first: bool = False
    note: str = ""


@dataclass(frozen=True)
class Model:
    """One denoiser class of diffusers.

    served: what users know it by. route: how its attention reaches torch's. layers: the first rule that fits decides.
    guidance: how the pipeline arranges classifier-free guidance. text_tokens: the usual length of the text.
    text, timestep, latents: the arguments of the call that a generation is followed by; no text is None.
    """

    denoiser: str
    served: str
    route: Literal["sdpa", "dispatch"]
    layers: tuple[LayerRule, ...]
    picture: Reader
    train_size: TrainSize
    train_size_from: str
    guidance: Guidance
    text_tokens: int = 0
    tokenizers: tuple[str, ...] = ()  # of the pipeline, whose texts stand one after the other; () where that is not so
    pack: int = 1  # latent cells a side that the pipeline packs into one, before the patches of the model
    pad: bool = False  # picture tokens are filled up to a multiple of 32
    refused: Mapping[str, str] = field(default_factory=dict)  # arguments of the call that are, and why
    text: str | None = "encoder_hidden_states"
    timestep: str = "timestep"
    latents: str = "hidden_states"
    note: str = ""

    def rule(self, layer: str) -> LayerRule | None:
        return next((rule for rule in self.layers if re.search(rule.pattern, layer)), None)

    @property
    def joint(self) -> bool:
        """Whether text and picture attend to both."""
        return any(rule.kind == "joint" for rule in self.layers)

    @property
    def halves(self) -> bool:
        """Whether layers see the picture halved, each in its own way."""
        return self.picture is pictures.unet

    def cells_a_token(self, config: Any) -> int:
        """Latent cells a side that become one token, in a model whose layers all see the picture alike."""
        return self.pack if self.pack > 1 else pictures.patch_of(config)

    def picture_tokens(self, config: Any, latent_size: tuple[int, int], frames: int = 1) -> int:
        """What every layer sees of a picture of this size, in a model whose layers all see it alike."""
        tokens = frames * pictures.tokens_of(latent_size, self.cells_a_token(config))
        return pictures.padded(tokens) if self.pad else tokens


def _pair(size: Any) -> tuple[int, int] | None:
    return tuple(size) if isinstance(size, (tuple, list)) else None if size is None else (size, size)


def _of_config(denoiser: nn.Module, pipe: Any) -> tuple[int, int] | None:
    return _pair(denoiser.config.sample_size)


def _of_cogvideo(denoiser: nn.Module, pipe: Any) -> tuple[int, int] | None:
    return denoiser.config.sample_height, denoiser.config.sample_width


def _of_pipeline(denoiser: nn.Module, pipe: Any) -> tuple[int, int] | None:
    return _pair(getattr(pipe, "default_sample_size", None))


def _pixels(height: int, width: int) -> TrainSize:
    """A size in pixels, which only a pipeline can turn into latent cells."""

    def latent(denoiser: nn.Module, pipe: Any) -> tuple[int, int] | None:
        if pipe is None:
            return None
        factor = latent_factor(pipe)
        return height // factor, width // factor

    return latent


def latent_factor(pipe: Any) -> int:
    """Pixels a latent cell, on a side; 1 for a pipeline without an autoencoder."""
    for name in _FACTORS:
        if isinstance(factor := getattr(pipe, name, None), int):
            return factor
    return 1


_FACTORS = (
    "vae_scale_factor",
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
)
_CONFIG = "sample_size of the configuration"
_PIPELINE = "default_sample_size of the pipeline"
_UNET_LAYERS = (
    LayerRule(r"^encoder_hid_proj\.", None, note="prepares an IP-Adapter's picture, before any attention to it"),
    LayerRule(r"", "call"),
)
_SELF_AND_CROSS = (LayerRule(r"attn1$", "self"), LayerRule(r"attn2$", "cross"))
_TEXT_FIRST = (LayerRule(r"", "joint", text="first"),)

_CALLS: Guidance = "calls: cond, uncond"
_REFERENCES = (
    "Reference pictures count among the keys, though not in training: give LogN(train_tokens=...) for editing. What is "
    "recorded is of the picture's own tokens."
)
_OWN_FACTOR = (
    "The model's own factor for longer sequences is replaced by the policy's scale, not multiplied with it, and stays "
    "where there is no policy."
)
_FRAMES = "Tokens at training are counted for as many frames as are generated."

MODELS: tuple[Model, ...] = (
    Model(
        "UNet2DConditionModel",
        "Stable Diffusion 1 and 2, SDXL, DeepFloyd IF, LDM text2im-256",
        "sdpa",
        _UNET_LAYERS,
        pictures.unet,
        _of_config,
        _CONFIG,
        "uncond, cond",
        text_tokens=77,
        tokenizers=("tokenizer",),
        latents="sample",
        note="In DeepFloyd IF the keys are text and picture, the text first: joint, with queries of the picture alone. "
        "LDM's pipeline does not show which texts it encodes: guided, its recorders need "
        '`branches=("uncond", "cond")`. Its text encoder keeps its own attention.',
    ),
    Model(
        "UNet2DModel",
        "DDPM, DDIM and other unconditional UNets",
        "sdpa",
        (LayerRule(r"", "self"),),
        pictures.unet,
        _of_config,
        _CONFIG,
        "none",
        text=None,
        latents="sample",
    ),
    Model(
        "DiTTransformer2DModel",
        "DiT",
        "sdpa",
        (LayerRule(r"attn1$", "self"),),
        pictures.patches,
        _of_config,
        _CONFIG,
        "cond, uncond",
        text="class_labels",
    ),
    Model(
        "PixArtTransformer2DModel",
        "PixArt-alpha, PixArt-Sigma",
        "sdpa",
        _SELF_AND_CROSS,
        pictures.patches,
        _of_config,
        _CONFIG,
        "uncond, cond",
        text_tokens=120,
    ),
    Model(
        "SD3Transformer2DModel",
        "Stable Diffusion 3 and 3.5",
        "sdpa",
        (LayerRule(r"attn2$", "self"), LayerRule(r"attn$", "joint", text="last")),
        pictures.patches,
        _of_config,
        _CONFIG,
        "uncond, cond",
        text_tokens=333,
        tokenizers=("tokenizer", "tokenizer_3"),
    ),
    Model(
        "FluxTransformer2DModel",
        "Flux 1",
        "dispatch",
        _TEXT_FIRST,
        pictures.packed_with_ids,
        _of_pipeline,
        _PIPELINE,
        _CALLS,
        text_tokens=512,
        tokenizers=("tokenizer_2",),
        pack=2,
        note=_REFERENCES,
    ),
    Model(
        "Flux2Transformer2DModel",
        "Flux 2, Flux 2 Klein",
        "dispatch",
        _TEXT_FIRST,
        pictures.packed_with_ids,
        _of_pipeline,
        _PIPELINE,
        _CALLS,
        text_tokens=512,
        pack=2,
        refused={"kv_cache": "the cached keys of reference pictures are not told apart"},
        note=_REFERENCES,
    ),
    Model(
        "ChromaTransformer2DModel",
        "Chroma",
        "dispatch",
        _TEXT_FIRST,
        pictures.packed_with_ids,
        _of_pipeline,
        _PIPELINE,
        _CALLS,
        text_tokens=512,
        pack=2,
        note="Its mask of zeros and ones is added to the scores, as the model does by itself.",
    ),
    Model(
        "QwenImageTransformer2DModel",
        "Qwen-Image, Qwen-Image-Edit",
        "dispatch",
        _TEXT_FIRST,
        pictures.packed_with_shapes,
        _of_pipeline,
        _PIPELINE,
        _CALLS,
        text_tokens=512,
        pack=2,
        note=_REFERENCES,
    ),
    Model(
        "ZImageTransformer2DModel",
        "Z-Image",
        "dispatch",
        (
            LayerRule(r"^noise_refiner\.", "self"),
            LayerRule(r"^context_refiner\.", "text"),
            LayerRule(r"^layers\.", "joint", text="last"),
        ),
        pictures.padded_list,
        _pixels(1024, 1024),
        "1024 x 1024 pixels, the default of the pipeline",
        "cond, uncond",
        text_tokens=512,
        text="cap_feats",
        timestep="t",
        latents="x",
        pack=2,
        pad=True,
        refused={
            "siglip_feats": "its reference pictures are not told apart",
            "image_noise_mask": "its reference pictures are not told apart",
        },
        note="Both counts of picture tokens are filled up to a multiple of 32, as the model does with the sequence.",
    ),
    Model(
        "LuminaNextDiT2DModel",
        "Lumina-Next",
        "sdpa",
        _SELF_AND_CROSS,
        pictures.patches,
        _of_config,
        _CONFIG,
        "cond, uncond",
        text_tokens=256,
        note=_OWN_FACTOR,
    ),
    Model(
        "Lumina2Transformer2DModel",
        "Lumina 2",
        "sdpa",
        (
            LayerRule(r"^context_refiner\.", "text"),
            LayerRule(r"^noise_refiner\.", "self"),
            LayerRule(r"^layers\.", "joint", text="first", ragged=True),
        ),
        pictures.patches,
        _of_config,
        _CONFIG,
        _CALLS,
        text_tokens=256,
        note="The picture begins where the prompt of its sample ends: what is recorded of joint attention covers the "
        "queries of both, and rows='image' is refused. " + _OWN_FACTOR,
    ),
    Model(
        "AuraFlowTransformer2DModel",
        "AuraFlow",
        "sdpa",
        _TEXT_FIRST,
        pictures.patches,
        _of_config,
        _CONFIG,
        "uncond, cond",
        text_tokens=264,
        note="The eight register tokens of the model stand before the text and count as text.",
    ),
    Model(
        "CogVideoXTransformer3DModel",
        "CogVideoX",
        "sdpa",
        _TEXT_FIRST,
        pictures.video_frames_first,
        _of_cogvideo,
        "sample_height and sample_width of the configuration",
        "uncond, cond",
        text_tokens=226,
        note=_FRAMES,
    ),
    Model(
        "CogView4Transformer2DModel",
        "CogView4",
        "sdpa",
        _TEXT_FIRST,
        pictures.patches,
        _of_config,
        _CONFIG,
        _CALLS,
        text_tokens=224,
    ),
    Model(
        "MochiTransformer3DModel",
        "Mochi 1",
        "sdpa",
        (LayerRule(r"", "joint", text="last", per_sample=True),),
        pictures.video,
        _pixels(480, 848),
        "480 x 848 pixels, the default of the pipeline",
        "uncond, cond",
        text_tokens=256,
        note="The model calls attention once for each sample, with the text of that sample alone. The "
        "pooling of its text keeps its own attention. " + _FRAMES,
    ),
    Model(
        "SanaTransformer2DModel",
        "Sana",
        "sdpa",
        (
            LayerRule(r"attn1$", None, note="linear attention: there is no softmax, so no scale and no entropy"),
            LayerRule(r"attn2$", "cross"),
        ),
        pictures.patches,
        _of_config,
        _CONFIG,
        "uncond, cond",
        text_tokens=300,
        note="Only its cross-attention has a softmax: a scale needs layers='cross'.",
    ),
    Model(
        "WanTransformer3DModel",
        "Wan 2.1, Wan 2.2",
        "dispatch",
        (LayerRule(r"attn1$", "self"), LayerRule(r"attn2$", "cross", picture_first=True)),
        pictures.video,
        _pixels(480, 832),
        "480 x 832 pixels, the default of the pipeline",
        _CALLS,
        text_tokens=512,
        note="Where a picture is given, attention to it is a layer of its own, `….attn2.image`. A pipeline with two "
        "denoisers is refused: apply to each of them. " + _FRAMES,
    ),
    Model(
        "LTXVideoTransformer3DModel",
        "LTX-Video",
        "dispatch",
        _SELF_AND_CROSS,
        pictures.packed_with_size,
        _pixels(512, 704),
        "512 x 704 pixels, the default of the pipeline",
        "uncond, cond",
        text_tokens=128,
        refused={"video_coords": "the size of the video is not told"},
        note=_FRAMES,
    ),
    Model(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideo",
        "dispatch",
        (LayerRule(r"token_refiner", "text"), LayerRule(r"", "joint", text="last")),
        pictures.video,
        _pixels(720, 1280),
        "720 x 1280 pixels, the default of the pipeline",
        _CALLS,
        text_tokens=256,
        note="The layers of the text refiner go without the dispatcher. " + _FRAMES,
    ),
    Model(
        "HunyuanDiT2DModel",
        "Hunyuan-DiT",
        "sdpa",
        _SELF_AND_CROSS,
        pictures.patches,
        _of_config,
        _CONFIG,
        "uncond, cond",
        text_tokens=333,
    ),
)


def denoiser_of(pipe: Any) -> Any:
    """The network whose attention is routed: a pipeline's UNet, or its transformer."""
    denoiser = getattr(pipe, "unet", None)
    if denoiser is None:
        denoiser = getattr(pipe, "transformer", None)
    if denoiser is None:
        raise ValueError(f"{type(pipe).__name__} has neither a UNet nor a transformer")
    return denoiser


def pixels_a_token(pipe: Any) -> int:
    """On a side, for a pipeline whose layers all see the picture alike."""
    denoiser = denoiser_of(pipe)
    return latent_factor(pipe) * model_of(denoiser).cells_a_token(denoiser.config)


def model_of(denoiser: object) -> Model | None:
    """The row of a denoiser, by the names of its class and of those it derives from."""
    names = [cls.__name__ for cls in type(denoiser).__mro__ if cls.__module__.startswith("diffusers.")]
    return next((model for model in MODELS if model.denoiser in names), None)
