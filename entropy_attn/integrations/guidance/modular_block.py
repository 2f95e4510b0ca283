"""`GuidanceBlock`: a guidance as a block of diffusers' modular pipelines, the first one of a denoising loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam, LoopSequentialPipelineBlocks, OutputParam
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt, as_guidance
from entropy_attn.guidance.tsam import TSAM
from entropy_attn.integrations.guidance.modular_models import MODELS, SDXL, ModularModel
from entropy_attn.integrations.guidance.updates import LatentUpdates
from entropy_attn.validation import expected

_NAME = "guidance"  # among the blocks of a loop


class GuidanceBlock(ModularPipelineBlocks):
    """What `attach` does, as a block for the modular pipelines of diffusers of SDXL, Stable Diffusion 3 and Flux.

    Its place is the first in a denoising loop, where `insert_into` puts it. The latents are updated before they are
    scaled for the model, from step 0 on. A call of the pipeline takes `guidance=` in place of the block's own, in Flux,
    whose `guidance` is a number, `attention_guidance=`; it needs the `prompt` also where it is given embeddings, and
    has the outputs `guidance_losses`, (step, loss of every image (B,)) in order, and `guidance_maps` (B, h, w, s) of
    the latest guided step, or None.

    The block keeps nothing between calls and changes neither denoiser nor scheduler. A routing of the denoiser by
    `ea.apply(pipe.unet)`, `ea.apply(pipe.transformer)`, keeps its scale in the guided pass too.

    Args:
        guidance: `TSAM()` or another `Guidance`; or a loss, a callable (maps, prompt) like `Guidance.loss`, which
            becomes a `Custom`.

    Raises:
        TypeError: `guidance` is neither a `Guidance` nor a callable.
    """

    model_name = SDXL.name

    def __init__(self, guidance: Guidance | Callable[[Tensor, Prompt], Tensor] = TSAM()):  # noqa: B008  (immutable)
        super().__init__()
        self.guidance = as_guidance(guidance)
        self._model = SDXL

    def _for(self, model: ModularModel) -> GuidanceBlock:
        """The block for a loop of this model; itself for SDXL."""
        if model is self._model:
            return self
        block = type(self)(self.guidance)
        block._model, block.model_name = model, model.name
        return block

    @property
    def description(self) -> str:
        """What diffusers shows of the block."""
        denoiser = "UNet" if self._model.scales else "transformer"
        return (
            f"step within the denoising loop that guides the latents by the attention maps of the {denoiser}: "
            f"{self.guidance}"
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The components that the block uses; most text encoders only for a guidance that needs their attention."""
        encoders = self._model.encoders if self.guidance.needs_text_attention else ()
        return [*self._model.parts, *encoders]

    @property
    def inputs(self) -> list[InputParam]:
        """The inputs of the block, those of the denoiser among them."""
        return [
            InputParam(
                self._model.guidance, type_hint=Guidance, description="The guidance of this call; None: the block's."
            ),
            InputParam("prompt", description="The prompt or prompts, whose words the guidance is about."),
            InputParam("latents", required=True, type_hint=Tensor, description="The latents before this step."),
            InputParam("timesteps", required=True, type_hint=Tensor, description="The timesteps of the generation."),
            *self._model.inputs,
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
            blocks: blocks of SDXL, Stable Diffusion 3 or Flux, such as `StableDiffusionXLAutoBlocks()` or the copy that
                `pipe.blocks` returns.

        Returns:
            The same `blocks`, for `blocks.init_pipeline()`.

        Raises:
            TypeError: `blocks` are no blocks.
            ValueError: they have no denoising loop of these models, or one that is guided already.
        """
        if not isinstance(blocks, ModularPipelineBlocks):
            raise TypeError(expected("blocks", "ModularPipelineBlocks, such as the copy pipe.blocks", blocks))
        loops = _guidable(blocks)
        if not loops:
            found = {type(each).__name__ for each in _nested(blocks) if isinstance(each, LoopSequentialPipelineBlocks)}
            kinds = ", ".join(sorted(found or {type(blocks).__name__}))
            raise ValueError(f"blocks: expected at least one denoising loop of {' or '.join(MODELS)}, got {kinds}")
        for loop, _ in loops:
            if any(isinstance(each, GuidanceBlock) for each in loop.sub_blocks.values()):
                raise ValueError(
                    f"blocks: expected none that are guided, got {type(loop).__name__} with a GuidanceBlock"
                )
        for name, each in list(blocks.sub_blocks.items()):
            if not isinstance(blocks, LoopSequentialPipelineBlocks) and _guidable(each):
                blocks.sub_blocks[name] = copy.deepcopy(each)  # all blocks of a class share one object
        for loop, model in _guidable(blocks):
            loop.sub_blocks.insert(_NAME, self._for(model), 0)
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
            args, kwargs = self._model.call(components, block_state, t)
            scheduler, scales = components.scheduler, self._model.scales
            block_state.latents = updates.update(
                block_state.latents,
                i,
                len(block_state.timesteps),
                lambda sample: scheduler.scale_model_input(sample, t) if scales else sample,
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
        given = getattr(block_state, self._model.guidance)
        guidance = self.guidance if given is None else as_guidance(given)
        updates = LatentUpdates(getattr(components, self._model.denoiser), guidance)
        updates.texts = self._model.texts(components, block_state, guidance.needs_text_attention)
        updates.warn_of_short_texts()
        return updates


def _guidable(blocks: ModularPipelineBlocks) -> list[tuple[LoopSequentialPipelineBlocks, ModularModel]]:
    """The denoising loops in `blocks` whose models are known."""
    loops = [each for each in _nested(blocks) if isinstance(each, LoopSequentialPipelineBlocks)]
    known = [(loop, MODELS[loop.model_name]) for loop in loops if loop.model_name in MODELS]
    return [(loop, model) for loop, model in known if model.denoiser in loop.component_names]


def _nested(blocks: ModularPipelineBlocks) -> Iterator[ModularPipelineBlocks]:
    """The blocks, and all that are in them."""
    yield blocks
    for each in blocks.sub_blocks.values():
        yield from _nested(each)
