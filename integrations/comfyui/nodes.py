"""The nodes. Each is a few lines around a function of this folder that does not need ComfyUI."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import ComfyExtension, io

from .chain import extended
from .probe import KINDS, Probe, figure, probed, table
from .scale import LAYERS, POLICIES, scale_of
from .words import WordMaps, mapped, overlays

CATEGORY = "entropy_attn"
ProbeType = io.Custom("ENTROPY_ATTN_PROBE")
MapsType = io.Custom("ENTROPY_ATTN_WORD_MAPS")


class AttentionLogNScale(io.ComfyNode):
    """A softmax scale that follows the number of tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyAttnLogNScale",
            display_name="Attention log-N scale",
            category=CATEGORY,
            description="Keeps the entropy of attention at image sizes other than the training size: the softmax scale "
            "becomes sqrt(ln N / ln T) / sqrt(d), layer by layer (Jin et al., NeurIPS 2023).",
            inputs=[
                io.Model.Input("model", tooltip="Stable Diffusion 1 or 2, SDXL, Stable Diffusion 3, or Flux 1."),
                io.Combo.Input(
                    "policy",
                    options=list(POLICIES),
                    default="logn",
                    tooltip="logn: sqrt(ln N / ln T). lognoroot: ln N / ln T, which is stronger.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default="self",
                    tooltip="self: where image tokens are among the keys, self- and joint attention. cross: where only "
                    "text is, which needs train_tokens.",
                ),
                io.Int.Input(
                    "train_size",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Side of the training images in pixels. 0 takes it from the class of the model: 512 for "
                    "Stable Diffusion 1.5, 1024 for SDXL, Stable Diffusion 3 and Flux; other models need it.",
                ),
                io.Int.Input(
                    "train_tokens",
                    default=0,
                    min=0,
                    max=1 << 20,
                    tooltip="T, the same number for all layers, instead of train_size. 0: from train_size.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=8.0,
                    step=0.05,
                    tooltip="Exponent on the factor: 0 no change, 1 the formula, 2 its square.",
                ),
                io.Combo.Input(
                    "direction",
                    options=["both", "up", "down"],
                    default="both",
                    tooltip="up: only images larger than in training. down: only smaller ones.",
                ),
                io.Boolean.Input(
                    "count_text_tokens",
                    default=False,
                    tooltip="In joint attention (Stable Diffusion 3, Flux): count the text in N and T, too.",
                ),
            ],
            outputs=[io.Model.Output("scaled_model", display_name="model")],
        )

    @classmethod
    def execute(cls, model: Any, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(extended(model, scale=scale_of(model, **settings)))


class EntropyProbe(io.ComfyNode):
    """Records the entropy of attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyAttnProbe",
            display_name="Entropy probe",
            category=CATEGORY,
            description="Records the entropy of every attention call while this model samples, without a change of the "
            "images. Read the probe with 'Read entropy probe'.",
            inputs=[
                io.Model.Input("model", tooltip="The model to record; give the model of this node to the sampler.")
            ],
            outputs=[
                io.Model.Output("probed_model", display_name="model"),
                ProbeType.Output("probe", tooltip="Holds the latest sampling of this node's model."),
            ],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(*probed(model))


class ReadEntropyProbe(io.ComfyNode):
    """A figure and a table of what a probe recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyAttnProbeRead",
            display_name="Read entropy probe",
            category=CATEGORY,
            description="Entropy / ln N of each layer at each noise level, as an image and as comma-separated values.",
            inputs=[
                ProbeType.Input("probe", tooltip="Of the node 'Entropy probe'."),
                io.Latent.Input("samples", tooltip="What the sampler gives: the probe is read after it has run."),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="self",
                    tooltip="What the image shows: self- and joint attention, or cross-attention. The table has all.",
                ),
            ],
            outputs=[
                io.Image.Output("image"),
                io.String.Output("csv", tooltip="A row for each layer, step and branch; entropies in nats."),
            ],
        )

    @classmethod
    def execute(cls, probe: Probe, samples: Any, kind: str) -> io.NodeOutput:
        return io.NodeOutput(image_of(figure(probe, kind)), table(probe))


class WordMapsPrompt(io.ComfyNode):
    """Records where the image attends to words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyAttnWordMaps",
            display_name="Word maps",
            category=CATEGORY,
            description="Encodes a prompt, and records while this model samples where the image attends to its words. "
            "Draw the maps with 'Word maps overlay'. For Stable Diffusion 1 and 2, and SDXL.",
            inputs=[
                io.Model.Input("model", tooltip="The model to record; give the model of this node to the sampler."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input("text", multiline=True, default="", tooltip="The positive prompt."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words of the prompt, separated by commas; words in a row count as one. Empty: every word.",
                ),
            ],
            outputs=[
                io.Model.Output("mapped_model", display_name="model"),
                io.Conditioning.Output("positive", tooltip="The prompt, as 'CLIP Text Encode' gives it."),
                MapsType.Output("maps", tooltip="Hold the latest sampling of this node's model."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, text: str, words: str) -> io.NodeOutput:
        return io.NodeOutput(*mapped(model, clip, text, words))


class WordMapsOverlay(io.ComfyNode):
    """Draws word maps over the images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EntropyAttnWordMapsOverlay",
            display_name="Word maps overlay",
            category=CATEGORY,
            description="Each word's map over each image: image after image, word after word.",
            inputs=[
                MapsType.Input("maps", tooltip="Of the node 'Word maps'."),
                io.Image.Input("images", tooltip="The decoded images of the sampling that was recorded."),
                io.Float.Input(
                    "strength",
                    default=0.65,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0: the image alone. 1: the map alone.",
                ),
            ],
            outputs=[
                io.Image.Output("overlays"),
                io.String.Output("csv", tooltip="image, word, its highest and its mean probability"),
            ],
        )

    @classmethod
    def execute(cls, maps: WordMaps, images: torch.Tensor, strength: float) -> io.NodeOutput:
        return io.NodeOutput(*overlays(maps, images, strength))


class EntropyAttnExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [AttentionLogNScale, EntropyProbe, ReadEntropyProbe, WordMapsPrompt, WordMapsOverlay]


def image_of(drawn: Any) -> torch.Tensor:
    """A matplotlib figure as ComfyUI's IMAGE, (1, height, width, 3) from 0 to 1."""
    drawn.canvas.draw()
    pixels = torch.frombuffer(bytearray(drawn.canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = drawn.canvas.get_width_height()
    return pixels.view(1, height, width, 4)[..., :3].float() / 255
