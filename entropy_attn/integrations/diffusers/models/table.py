"""The denoisers whose attention is routed, one row each.

docs/models.md is written from this table, and tests/integrations/diffusers/test_models.py runs every row.
"""

from __future__ import annotations

from entropy_attn.integrations.diffusers.models import image_size
from entropy_attn.integrations.diffusers.models.rules import (
    COND_FIRST,
    NO_GUIDANCE,
    SEPARATE_CALLS,
    UNCOND_FIRST,
    LayerRule,
    Model,
    RowArguments,
)
from entropy_attn.integrations.diffusers.models.train_size import of_config, of_pipeline, of_pixels, of_video_config

_CONFIG = "sample_size of the configuration"
_PIPELINE = "default_sample_size of the pipeline"
_UNET_LAYERS = (
    LayerRule(r"^encoder_hid_proj\.", None, note="prepares the image of an IP-Adapter, before any attention to it"),
    LayerRule(r"", "call"),
)
_SELF_AND_CROSS = (LayerRule(r"attn1$", "self"), LayerRule(r"attn2$", "cross"))
_TEXT_FIRST = (LayerRule(r"", "joint", text="first"),)

_REFERENCES = (
    "Reference images count among the keys, but not in training: give LogN(train_tokens=...) for editing. Recorders "
    "see the tokens of the generated image."
)
_MODEL_FACTOR = (
    "The policy's scale replaces the model's factor for longer sequences; it is not multiplied with it. Without a "
    "policy the factor stays."
)
_FRAMES = "The token count at training assumes as many frames as are generated."

MODELS: tuple[Model, ...] = (
    Model(
        "UNet2DConditionModel",
        "Stable Diffusion 1 and 2, SDXL, DeepFloyd IF, LDM text2im-256",
        "sdpa",
        _UNET_LAYERS,
        image_size.unet,
        of_config,
        _CONFIG,
        UNCOND_FIRST,
        text_tokens=77,
        timesteps=1.0,
        tokenizers=("tokenizer",),
        latents="sample",
        halves=True,
        second_text=True,
        text_mask="encoder_attention_mask",
        note="In DeepFloyd IF the keys are text and image, the text first: joint attention, with queries of the image "
        "alone. The text encoder of LDM is not routed.",
    ),
    Model(
        "UNet2DModel",
        "DDPM, DDIM and other unconditional UNets",
        "sdpa",
        (LayerRule(r"", "self"),),
        image_size.unet,
        of_config,
        _CONFIG,
        NO_GUIDANCE,
        text=None,
        latents="sample",
        halves=True,
    ),
    Model(
        "DiTTransformer2DModel",
        "DiT",
        "sdpa",
        (LayerRule(r"attn1$", "self"),),
        image_size.patches,
        of_config,
        _CONFIG,
        COND_FIRST,
        text="class_labels",
    ),
    Model(
        "PixArtTransformer2DModel",
        "PixArt-alpha, PixArt-Sigma",
        "sdpa",
        _SELF_AND_CROSS,
        image_size.patches,
        of_config,
        _CONFIG,
        UNCOND_FIRST,
        text_tokens=120,
        timesteps=1.0,
        second_text=True,
        text_mask="encoder_attention_mask",
    ),
    Model(
        "SD3Transformer2DModel",
        "Stable Diffusion 3 and 3.5",
        "sdpa",
        (LayerRule(r"attn2$", "self"), LayerRule(r"attn$", "joint", text="last")),
        image_size.patches,
        of_config,
        _CONFIG,
        UNCOND_FIRST,
        text_tokens=333,
        timesteps=1.0,
        tokenizers=("tokenizer", "tokenizer_3"),
        text_rows=RowArguments(
            ("hidden_states", "timestep"), "pooled_projections", ("block_controlnet_hidden_states",)
        ),
    ),
    Model(
        "FluxTransformer2DModel",
        "Flux 1",
        "dispatch",
        _TEXT_FIRST,
        image_size.packed_with_ids,
        of_pipeline,
        _PIPELINE,
        SEPARATE_CALLS,
        text_tokens=512,
        timesteps=1e-3,
        tokenizers=("tokenizer_2",),
        pack=2,
        text_rows=RowArguments(
            ("hidden_states", "timestep", "guidance"),
            "pooled_projections",
            ("controlnet_block_samples", "controlnet_single_block_samples"),
        ),
        note=_REFERENCES,
    ),
    Model(
        "Flux2Transformer2DModel",
        "Flux 2, Flux 2 Klein",
        "dispatch",
        _TEXT_FIRST,
        image_size.packed_with_ids,
        of_pipeline,
        _PIPELINE,
        SEPARATE_CALLS,
        text_tokens=512,
        timesteps=1e-3,
        pack=2,
        refused={"kv_cache": "the cached keys of reference images cannot be distinguished"},
        text_rows=RowArguments(("hidden_states", "timestep", "guidance")),
        note=_REFERENCES,
    ),
    Model(
        "ChromaTransformer2DModel",
        "Chroma",
        "dispatch",
        _TEXT_FIRST,
        image_size.packed_with_ids,
        of_pipeline,
        _PIPELINE,
        SEPARATE_CALLS,
        text_tokens=512,
        timesteps=1e-3,
        pack=2,
        note="Its mask of zeros and ones is added to the scores, as the model does by itself.",
    ),
    Model(
        "QwenImageTransformer2DModel",
        "Qwen-Image, Qwen-Image-Edit",
        "dispatch",
        _TEXT_FIRST,
        image_size.packed_with_shapes,
        of_pipeline,
        _PIPELINE,
        SEPARATE_CALLS,
        text_tokens=512,
        timesteps=1e-3,
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
        image_size.padded_list,
        of_pixels(1024, 1024),
        "1024 x 1024 pixels, the default of the pipeline",
        COND_FIRST,
        text_tokens=512,
        text="cap_feats",
        timestep="t",
        latents="x",
        pack=2,
        pad=True,
        refused={
            "siglip_feats": "its reference images cannot be distinguished",
            "image_noise_mask": "its reference images cannot be distinguished",
        },
        note="Both counts of image tokens are padded to a multiple of 32, as the model pads the sequence.",
    ),
    Model(
        "LuminaNextDiT2DModel",
        "Lumina-Next",
        "sdpa",
        _SELF_AND_CROSS,
        image_size.patches,
        of_config,
        _CONFIG,
        COND_FIRST,
        text_tokens=256,
        note=_MODEL_FACTOR,
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
        image_size.patches,
        of_config,
        _CONFIG,
        SEPARATE_CALLS,
        text_tokens=256,
        tokenizers=("tokenizer",),
        prefix="{system_prompt} <Prompt Start> ",
        note="The image begins where the prompt of its sample ends: rows='image' is refused for prompts of different "
        "lengths in one batch. " + _MODEL_FACTOR,
    ),
    Model(
        "AuraFlowTransformer2DModel",
        "AuraFlow",
        "sdpa",
        _TEXT_FIRST,
        image_size.patches,
        of_config,
        _CONFIG,
        UNCOND_FIRST,
        text_tokens=264,
        note="The eight register tokens of the model stand before the text and count as text.",
    ),
    Model(
        "CogVideoXTransformer3DModel",
        "CogVideoX",
        "sdpa",
        _TEXT_FIRST,
        image_size.video_frames_first,
        of_video_config,
        "sample_height and sample_width of the configuration",
        UNCOND_FIRST,
        text_tokens=226,
        note=_FRAMES,
    ),
    Model(
        "CogView4Transformer2DModel",
        "CogView4",
        "sdpa",
        _TEXT_FIRST,
        image_size.patches,
        of_config,
        _CONFIG,
        SEPARATE_CALLS,
        text_tokens=224,
    ),
    Model(
        "MochiTransformer3DModel",
        "Mochi 1",
        "sdpa",
        (LayerRule(r"", "joint", text="last", per_sample=True),),
        image_size.video,
        of_pixels(480, 848),
        "480 x 848 pixels, the default of the pipeline",
        UNCOND_FIRST,
        text_tokens=256,
        note="The model calls attention once per sample, with the text of that sample alone. The pooling of its text "
        "is not routed. " + _FRAMES,
    ),
    Model(
        "SanaTransformer2DModel",
        "Sana",
        "sdpa",
        (
            LayerRule(r"attn1$", None, note="linear attention: there is no softmax, so no scale and no entropy"),
            LayerRule(r"attn2$", "cross"),
        ),
        image_size.patches,
        of_config,
        _CONFIG,
        UNCOND_FIRST,
        text_tokens=300,
        second_text=True,
        text_mask="encoder_attention_mask",
        note="Only its cross-attention has a softmax: a scale needs layers='cross'.",
    ),
    Model(
        "WanTransformer3DModel",
        "Wan 2.1, Wan 2.2",
        "dispatch",
        (LayerRule(r"attn1$", "self"), LayerRule(r"attn2$", "cross", image_prompt_first=True)),
        image_size.video,
        of_pixels(480, 832),
        "480 x 832 pixels, the default of the pipeline",
        SEPARATE_CALLS,
        text_tokens=512,
        second_text=True,
        note="Attention to an image prompt is recorded as a separate layer, `….attn2.image`. A pipeline with two "
        "denoisers is refused: apply to each of them. " + _FRAMES,
    ),
    Model(
        "LTXVideoTransformer3DModel",
        "LTX-Video",
        "dispatch",
        _SELF_AND_CROSS,
        image_size.packed_with_size,
        of_pixels(512, 704),
        "512 x 704 pixels, the default of the pipeline",
        UNCOND_FIRST,
        text_tokens=128,
        refused={"video_coords": "the size of the video is not known with it"},
        second_text=True,
        text_mask="encoder_attention_mask",
        note=_FRAMES,
    ),
    Model(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideo",
        "dispatch",
        (LayerRule(r"token_refiner", "text"), LayerRule(r"", "joint", text="last")),
        image_size.video,
        of_pixels(720, 1280),
        "720 x 1280 pixels, the default of the pipeline",
        SEPARATE_CALLS,
        text_tokens=256,
        note="The layers of the text refiner do not use the dispatcher. " + _FRAMES,
    ),
    Model(
        "HunyuanDiT2DModel",
        "Hunyuan-DiT",
        "sdpa",
        _SELF_AND_CROSS,
        image_size.patches,
        of_config,
        _CONFIG,
        UNCOND_FIRST,
        text_tokens=333,
    ),
)


def model_of(denoiser: object) -> Model:
    """The row of a denoiser.

    Raises:
        ValueError: it is none of them.
    """
    model = find_model(denoiser)
    if model is None:
        raise ValueError(f"{type(denoiser).__name__} is none of the denoisers of docs/models.md")
    return model


def find_model(denoiser: object) -> Model | None:
    """The row of a denoiser, by the names of its class and of its bases; None if it has none."""
    names = [cls.__name__ for cls in type(denoiser).__mro__ if cls.__module__.startswith("diffusers.")]
    return next((model for model in MODELS if model.denoiser in names), None)
