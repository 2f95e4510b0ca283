"""What `GuidanceBlock` has to know of each modular pipeline: its components, its inputs, and its denoiser's call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.modular_pipelines import ComponentSpec, InputParam
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from entropy_attn.guidance.method import Prompt
from entropy_attn.integrations.diffusers.prompt_hook import tokenizer_of
from entropy_attn.integrations.guidance.forward import conditional
from entropy_attn.integrations.guidance.prompts import joint_prompts_of, prompts_of
from entropy_attn.validation import checked_prompt

Call = tuple[tuple, dict[str, Any]]


@dataclass(frozen=True)
class ModularModel:
    """One kind of modular pipelines.

    name: the `model_name` of its blocks.
    denoiser: name of the component that denoises.
    parts: the components that are always needed.
    encoders: those of a guidance that needs the attention of the text encoders.
    inputs: of the block, besides guidance, prompt, latents and timesteps.
    texts: the prompts of a call, from components, state and whether their attention is needed.
    call: of the denoiser for the conditional text, from components, state and timestep.
    scales: whether the scheduler scales the latents for the denoiser.
    guidance: name of the input with the guidance of a call.
    """

    name: str
    denoiser: str
    parts: tuple[ComponentSpec, ...]
    encoders: tuple[ComponentSpec, ...]
    inputs: tuple[InputParam, ...]
    texts: Callable[[Any, Any, bool], list[Prompt]]
    call: Callable[[Any, Any, Tensor], Call]
    scales: bool = False
    guidance: str = "guidance"


def _texts_of_unet(components: Any, block_state: Any, attention: bool) -> list[Prompt]:
    prompts = checked_prompt(block_state.prompt)
    if hasattr(components, "maybe_convert_prompt"):  # a textual inversion may be several tokens
        prompts = components.maybe_convert_prompt(prompts, tokenizer_of(components))
    return prompts_of(components, prompts, attention)


def _call_of_unet(components: Any, block_state: Any, t: Tensor) -> Call:
    latents = block_state.latents
    sample = components.scheduler.scale_model_input(latents, t)
    if components.unet.config.in_channels > latents.shape[1]:  # a UNet for inpainting
        sample = torch.cat([sample, block_state.mask, block_state.masked_image_latents], dim=1)
    added = {"time_ids": block_state.add_time_ids, "text_embeds": block_state.pooled_prompt_embeds}
    if (embeds := getattr(block_state, "ip_adapter_embeds", None)) is not None:
        added["image_embeds"] = embeds
    kwargs = {
        "encoder_hidden_states": block_state.prompt_embeds,
        "timestep_cond": block_state.timestep_cond,
        "cross_attention_kwargs": block_state.cross_attention_kwargs,
        "added_cond_kwargs": added,
        "return_dict": False,
    }
    return (conditional(sample, len(latents), 0, 1), t), conditional(kwargs, len(latents), 0, 1)


def _texts_of_sd3(components: Any, block_state: Any, attention: bool) -> list[Prompt]:
    prompts: list[Any] = checked_prompt(block_state.prompt)
    if block_state.prompt_3 is not None:  # the text of T5
        prompts = list(zip(prompts, checked_prompt(block_state.prompt_3), strict=True))
    return joint_prompts_of(components, prompts, block_state.prompt_embeds.shape[1], attention)


def _call_of_sd3(components: Any, block_state: Any, t: Tensor) -> Call:
    latents = block_state.latents
    kwargs = {
        "hidden_states": latents,
        "timestep": t.expand(len(latents)),
        "encoder_hidden_states": block_state.prompt_embeds,
        "pooled_projections": block_state.pooled_prompt_embeds,
        "joint_attention_kwargs": block_state.joint_attention_kwargs,
        "return_dict": False,
    }
    return (), conditional(kwargs, len(latents), 0, 1)


def _texts_of_flux(components: Any, block_state: Any, attention: bool) -> list[Prompt]:
    # Its text block gives T5 the prompt, whatever prompt_2 is.
    prompts = checked_prompt(block_state.prompt)
    return joint_prompts_of(components, prompts, block_state.prompt_embeds.shape[1], attention)


def _call_of_flux(components: Any, block_state: Any, t: Tensor) -> Call:
    latents = block_state.latents
    kwargs = {
        "hidden_states": latents,
        "timestep": t.flatten() / 1000,
        "guidance": block_state.guidance,
        "encoder_hidden_states": block_state.prompt_embeds,
        "pooled_projections": block_state.pooled_prompt_embeds,
        "joint_attention_kwargs": block_state.joint_attention_kwargs,
        "txt_ids": block_state.txt_ids,
        "img_ids": block_state.img_ids,
        "return_dict": False,
    }
    return (), conditional(kwargs, len(latents), 0, 1)


_EMBEDS = tuple(
    InputParam(name, required=True, type_hint=Tensor, description="The text embeddings of the prompt.")
    for name in ("prompt_embeds", "pooled_prompt_embeds")
)

SDXL = ModularModel(
    "stable-diffusion-xl",
    "unet",
    (
        ComponentSpec("unet", UNet2DConditionModel),
        ComponentSpec("scheduler", EulerDiscreteScheduler),
        ComponentSpec("tokenizer", CLIPTokenizer),
        ComponentSpec("tokenizer_2", CLIPTokenizer),
    ),
    (ComponentSpec("text_encoder", CLIPTextModel), ComponentSpec("text_encoder_2", CLIPTextModelWithProjection)),
    (
        InputParam("timestep_cond", type_hint=Tensor, description="The embedding of the guidance scale."),
        InputParam("cross_attention_kwargs"),
        InputParam(kwargs_type="denoiser_input_fields", description="The conditions of the denoiser."),
    ),
    _texts_of_unet,
    _call_of_unet,
    scales=True,
)
SD3 = ModularModel(
    "stable-diffusion-3",
    "transformer",
    (
        ComponentSpec("transformer", SD3Transformer2DModel),
        ComponentSpec("tokenizer", CLIPTokenizer),
        ComponentSpec("tokenizer_2", CLIPTokenizer),
        ComponentSpec("tokenizer_3", T5TokenizerFast),
        # Without T5 its text is zeros, which are no words.
        ComponentSpec("text_encoder_3", T5EncoderModel),
    ),
    (
        ComponentSpec("text_encoder", CLIPTextModelWithProjection),
        ComponentSpec("text_encoder_2", CLIPTextModelWithProjection),
    ),
    (InputParam("prompt_3", description="The text of T5."), InputParam("joint_attention_kwargs"), *_EMBEDS),
    _texts_of_sd3,
    _call_of_sd3,
)
FLUX = ModularModel(
    "flux",
    "transformer",
    (ComponentSpec("transformer", FluxTransformer2DModel), ComponentSpec("tokenizer_2", T5TokenizerFast)),
    (ComponentSpec("text_encoder_2", T5EncoderModel),),
    (
        InputParam("guidance", type_hint=Tensor, description="The embedded guidance scale of the distilled models."),
        InputParam("joint_attention_kwargs"),
        InputParam("txt_ids", required=True, type_hint=Tensor, description="The positions of the text tokens."),
        InputParam("img_ids", required=True, type_hint=Tensor, description="The positions of the image tokens."),
        *_EMBEDS,
    ),
    _texts_of_flux,
    _call_of_flux,
    guidance="attention_guidance",
)
MODELS = {model.name: model for model in (SDXL, SD3, FLUX)}
