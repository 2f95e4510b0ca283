"""How often the latent has been halved where a layer of a UNet sees it."""

from __future__ import annotations

from diffusers import ModelMixin

from entropy_attn.integrations.diffusers.models.table import model_of
from entropy_attn.integrations.diffusers.private import AttentionLayer


def halvings(unet: ModelMixin, name: str) -> int:
    """How often the latent of a UNet has been halved where this layer sees it."""
    part, index = name.split(".")[:2]
    down = [getattr(block, "downsamplers", None) is not None for block in unet.down_blocks]
    up = [getattr(block, "upsamplers", None) is not None for block in unet.up_blocks]
    if part == "down_blocks":
        return sum(down[: int(index)])
    return sum(down) - (sum(up[: int(index)]) if part == "up_blocks" else 0)


def layer_halvings(denoiser: ModelMixin) -> dict[str, int]:
    """The halvings of every routed layer of a UNet; empty for models whose layers all see the image alike."""
    model = model_of(denoiser)
    if not model.halves:
        return {}
    names = (name for name, module in denoiser.named_modules() if isinstance(module, AttentionLayer))
    rules = ((name, model.rule(name)) for name in names)
    return {name: halvings(denoiser, name) for name, rule in rules if rule is not None and rule.kind is not None}
