"""`GuidanceBlock`: a guidance as a block of diffusers' modular pipelines, the first one of a denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, ModularPipelineBlocks, UNet2DConditionModel
from diffusers.modular_pipelines import ComponentSpec, InputParam, LoopSequentialPipelineBlocks, OutputParam
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from entropy_attn.guidance.method import Guidance, Prompt, as_guidance
from entropy_attn.guidance.tsam import TSAM
from entropy_attn.integrations.diffusers.prompt_hook import tokenizer_of
from entropy_attn.integrations.guidance.forward import conditional
from entropy_attn.integrations.guidance.prompts import prompts_of
from entropy_attn.integrations.guidance.updates import LatentUpdates
from entropy_attn.validation import checked_prompt, expected

_MODEL = "stable-diffusion-xl"  # the only modular pipelines of diffusers around a UNet
_NAME = "guidance"  # among the blocks of a loop


class GuidanceBlock(ModularPipelineBlocks):
    """What `attach` does, as a block for the modular SDXL pipelines of diffusers: it updates the latents of each step.

    Its place is the first in a denoising loop, where `insert_into` puts it. The latents are updated before they are
    scaled for the model, from step 0 on. A call of the pipeline takes `guidance=` in place of the block's own, needs
    the `prompt` also where it is given embeddings, and has the outputs `guidance_losses`, (step, loss of every image
    (B,)) in order, and `guidance_maps` (B, h, w, s) of the latest guided step, or None.

    The block keeps nothing between calls and changes neither UNet nor scheduler. A routing of the UNet by
    `ea.apply(pipe.unet)` keeps its scale in the guided pass too.

    Args:
        guidance: `TSAM()` or another `Guidance`; or a loss, a callable (maps, prompt) like `Guidance.loss`, which
            becomes a `Custom`.

    Raises:
        TypeError: `guidance` is neither a `Guidance` nor a callable.
    """

    model_name = _MODEL

    def __init__(self, guidance: Guidance | Callable[[Tensor, Prompt], Tensor] = TSAM()):  # noqa: B008  (immutable)
        super().__init__()
        self.guidance = as_guidance(guidance)

    @property
    def description(self) -> str:
        """What diffusers shows of the block."""
        return (
            f"step within the denoising loop that guides the latents by the attention maps of the UNet: {self.guidance}"
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The components that the block uses; the text encoders only for a guidance that needs their attention."""
        specs = [
            ComponentSpec("unet", UNet2DConditionModel),
            ComponentSpec("scheduler", EulerDiscreteScheduler),
            ComponentSpec("tokenizer", CLIPTokenizer),
            ComponentSpec("tokenizer_2", CLIPTokenizer),
        ]
        if self.guidance.needs_text_attention:
            specs += [
                ComponentSpec("text_encoder", CLIPTextModel),
                ComponentSpec("text_encoder_2", CLIPTextModelWithProjection),
            ]
        return specs

    @property
    def inputs(self) -> list[InputParam]:
        """The inputs of the block, those of the denoiser among them."""
        return [
            InputParam("guidance", type_hint=Guidance, description="The guidance of this call; None: the block's."),
            InputParam("prompt", description="The prompt or prompts, whose words the guidance is about."),
            InputParam("latents", required=True, type_hint=Tensor, description="The latents before this step."),
            InputParam("timesteps", required=True, type_hint=Tensor, description="The timesteps of the generation."),
            InputParam("timestep_cond", type_hint=Tensor, description="The embedding of the guidance scale."),
            InputParam("cross_attention_kwargs"),
            InputParam(kwargs_type="denoiser_input_fields", description="The conditions of the denoiser."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The updated latents, and what is known of the guidance."""
        return [
            OutputParam("latents", type_hint=Tensor, description="The guided latents."),
            OutputParam("guidance_losses", type_hint=list, description="(step, loss of every image (B,)) in order."),
            OutputParam("guidance_maps", type_hint=Tensor, description="Maps (B, h, w, s) of the latest guided step."),
        ]

    def insert_into(self, blocks: ModularPipelineBlocks) -> ModularPipelineBlocks:
        """Put this block first into every denoising loop of `blocks`.

        Args:
            blocks: blocks of SDXL, such as `StableDiffusionXLAutoBlocks()` or the copy that `pipe.blocks` returns.

        Returns:
            The same `blocks`, for `blocks.init_pipeline()`.

        Raises:
            TypeError: `blocks` are no blocks.
            ValueError: they have no denoising loop of SDXL, or one that is guided already.
        """
        if not isinstance(blocks, ModularPipelineBlocks):
            raise TypeError(expected("blocks", "ModularPipelineBlocks, such as the copy pipe.blocks", blocks))
        found = [each for each in _nested(blocks) if isinstance(each, LoopSequentialPipelineBlocks)]
        loops = [loop for loop in found if loop.model_name == _MODEL and "unet" in loop.component_names]
        if not loops:
            kinds = ", ".join(sorted({type(each).__name__ for each in found} or {type(blocks).__name__}))
            raise ValueError(f"blocks: expected at least one denoising loop of {_MODEL}, got {kinds}")
        for loop in loops:
            if any(isinstance(each, GuidanceBlock) for each in loop.sub_blocks.values()):
                raise ValueError(
                    f"blocks: expected none that are guided, got {type(loop).__name__} with a GuidanceBlock"
                )
        for loop in loops:
            loop.sub_blocks.insert(_NAME, self, 0)
        return blocks

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> tuple[Any, Any]:
        """Update the latents before a step.

        Args:
            components: the pipeline.
            block_state: the state of the loop.
            i: the step, from 0.
            t: its timestep.

        Returns:
            `components` and `block_state`.

        Raises:
            ValueError: the prompt is not known, or the loop is one with a ControlNet.
        """
        if not hasattr(block_state, "guidance_updates"):
            block_state.guidance_updates = self._begin(components, block_state)
        updates: LatentUpdates = block_state.guidance_updates
        if updates.due(i):
            args, kwargs = _unet_call(components, block_state, t)
            block_state.latents = updates.update(
                block_state.latents,
                i,
                len(block_state.timesteps),
                lambda sample: components.scheduler.scale_model_input(sample, t),
                args,
                kwargs,
            )
        block_state.guidance_losses, block_state.guidance_maps = updates.losses, updates.maps
        return components, block_state

    def _begin(self, components: Any, block_state: Any) -> LatentUpdates:
        if getattr(block_state, "controlnet_cond", None) is not None:
            raise ValueError(
                "control_image: expected None with a GuidanceBlock, whose pass has no ControlNet; use ea.attach with a "
                "pipeline that is not modular"
            )
        if block_state.prompt is None:
            raise ValueError(
                "prompt: expected the text of the embeddings, whose words the guidance is about, as an input of the "
                "pipeline, got None"
            )
        guidance = self.guidance if block_state.guidance is None else as_guidance(block_state.guidance)
        updates = LatentUpdates(components.unet, guidance)
        prompts = checked_prompt(block_state.prompt)
        if hasattr(components, "maybe_convert_prompt"):  # a textual inversion may be several tokens
            prompts = components.maybe_convert_prompt(prompts, tokenizer_of(components))
        updates.texts = prompts_of(components, prompts, guidance.needs_text_attention)
        updates.warn_of_short_texts()
        return updates


def _nested(blocks: ModularPipelineBlocks) -> Iterator[ModularPipelineBlocks]:
    """The blocks, and all that are in them."""
    yield blocks
    for each in blocks.sub_blocks.values():
        yield from _nested(each)


def _unet_call(components: Any, block_state: Any, t: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The UNet's call for the conditional text, as the denoiser block makes it."""
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
