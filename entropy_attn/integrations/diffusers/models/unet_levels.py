"""How often the latent has been halved where a layer of a UNet sees it."""

from __future__ import annotations

from diffusers import ModelMixin


def halvings(unet: ModelMixin, name: str) -> int:
    """How often the latent of a UNet has been halved where this layer sees it."""
    part, index = name.split(".")[:2]
    down = [getattr(block, "downsamplers", None) is not None for block in unet.down_blocks]
    up = [getattr(block, "upsamplers", None) is not None for block in unet.up_blocks]
    if part == "down_blocks":
        return sum(down[: int(index)])
    return sum(down) - (sum(up[: int(index)]) if part == "up_blocks" else 0)
