"""The number of the block that a layer is in."""

from __future__ import annotations

from diffusers import ModelMixin

from entropy_attn.integrations.diffusers.models.table import model_of
from entropy_attn.integrations.diffusers.private import AttentionLayer
from entropy_attn.routing.calls import Blocks

# Models that run their parts in another order than they list them
_UNET = ("down_blocks", "mid_block", "up_blocks")
_OTHERS = {"Lumina2Transformer2DModel": ("context_refiner", "noise_refiner", "layers")}


def layer_blocks(denoiser: ModelMixin) -> Blocks:
    """The block of every routed layer, numbered as the model runs them.

    A block is what has the layers as attributes, such as the `transformer_blocks.3` of `transformer_blocks.3.attn1`; a
    layer that is in a list of layers is a block of its own.
    """
    model = model_of(denoiser)
    order = _OTHERS.get(model.denoiser, _UNET)
    names = (name for name, module in denoiser.named_modules() if isinstance(module, AttentionLayer))
    rules = ((name, model.rule(name)) for name in names)
    routed = [name for name, rule in rules if rule is not None and rule.kind is not None]
    blocks = sorted(dict.fromkeys(map(_block, routed)), key=lambda block: _part(block, order))  # stable
    number = {block: index for index, block in enumerate(blocks)}
    return Blocks({name: number[_block(name)] for name in routed}, len(blocks))


def _block(layer: str) -> str:
    parent, _, last = layer.rpartition(".")
    return layer if last.isdigit() else parent


def _part(block: str, order: tuple[str, ...]) -> int:
    part = block.partition(".")[0]
    return order.index(part) if part in order else len(order)
