"""How much memory a picture needs at the least, by arithmetic on shapes: enough to refuse what cannot be made.

Every figure is a lower bound of what is held at one moment, so that nothing is refused that would run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entropy_attn.integrations.diffusers.models import latent_factor, model_of
from entropy_attn.integrations.diffusers.target import denoiser_of

GIB = 2**30
_HELD = 2  # tensors: what goes into an operation, and what comes out


@dataclass(frozen=True)
class Needs:
    """Bytes, each a lower bound.

    weights: that stay on the device. latents: of all pictures. denoiser: the activations at its finest level, for both
    halves of a guided batch where it has them as one. decode: of one picture at a time, by the VAE's last level.
    """

    weights: int
    latents: int
    denoiser: int
    decode: int

    @property
    def peak(self) -> int:
        """The denoiser and the VAE do not run at the same time."""
        return self.weights + self.latents + max(self.denoiser, self.decode)

    def __str__(self) -> str:
        parts = {"weights": self.weights, "latents": self.latents, "denoiser": self.denoiser, "VAE decode": self.decode}
        return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in parts.items())


def memory_needed(pipe: Any, size: tuple[int, int], pictures: int = 1) -> Needs:
    """For so many pictures of (height, width) pixels in one batch."""
    denoiser = denoiser_of(pipe)
    model = model_of(denoiser)
    factor = latent_factor(pipe)
    rows, columns = size[0] // factor, size[1] // factor
    item = denoiser.dtype.itemsize
    config = denoiser.config
    channels = getattr(config, "in_channels", None) or 4
    if model.halves:
        tokens, width = rows * columns, config.block_out_channels[0]
    else:
        tokens, width = model.image_tokens(config, (rows, columns)), _width(denoiser)
    # What the first convolution or projection makes of the latent, and what the first block makes of that.
    activations = _HELD * tokens * width * item * pictures
    return Needs(
        weights=_resident(pipe),
        latents=pictures * rows * columns * channels * item,
        denoiser=activations,
        decode=_decode(pipe, size),
    )


def check_memory(pipe: Any, size: tuple[int, int], pictures: int = 1) -> None:
    """Raise `ValueError` where a picture of this size needs more memory than the pipeline's device has."""
    device = execution_device(pipe)
    there = device_memory(device)
    needs = memory_needed(pipe, size, pictures)
    if there is None or needs.peak <= there:
        return
    where = "this machine" if device.type == "cpu" else f"{device}"
    ways = ["a smaller size"]
    vae = getattr(pipe, "vae", None)
    if needs.decode > needs.denoiser and hasattr(vae, "enable_tiling") and not getattr(vae, "use_tiling", False):
        ways.insert(0, "VAE tiling")
    if pictures > 1:
        ways.append("fewer pictures at once")
    raise ValueError(
        f"size {size[0]}x{size[1]} needs at least {needs.peak / GIB:.1f} GiB ({needs}; {pictures} at once), and "
        f"{where} has {there / GIB:.1f} GiB: use {' or '.join(ways)}"
    )


def execution_device(pipe: Any) -> torch.device:
    """Where the pipeline computes, also where its parts wait elsewhere."""
    device = getattr(pipe, "_execution_device", None) or getattr(pipe, "device", "cpu")
    return torch.device(device)


def device_memory(device: torch.device) -> int | None:
    """Bytes that a device has in all; of a CPU, what this process may have. None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    return min(_machine_memory(), _group_limit())


def _machine_memory() -> int:
    import psutil

    return psutil.virtual_memory().total


def _group_limit() -> int:
    """What a container is held to."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            return int(text)
    return 2**63


def _resident(pipe: Any) -> int:
    """Weights that are on the execution device now; those of an offloaded part come and go."""
    device = execution_device(pipe)
    total = 0
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            total += sum(p.numel() * p.element_size() for p in part.parameters() if p.device.type == device.type)
    return total


def _width(denoiser: Any) -> int:
    """Channels of a token."""
    config = denoiser.config
    found = getattr(denoiser, "inner_dim", None) or getattr(config, "hidden_size", None)
    if isinstance(found, int):
        return found
    heads, dim = getattr(config, "num_attention_heads", None), getattr(config, "attention_head_dim", None)
    return heads * dim if isinstance(heads, int) and isinstance(dim, int) else 64


def _decode(pipe: Any, size: tuple[int, int]) -> int:
    """A picture through the last level of the VAE, whose channels at the full size are the most that it holds."""
    vae = getattr(pipe, "vae", None)
    channels = getattr(getattr(vae, "config", None), "block_out_channels", None)
    if not isinstance(vae, torch.nn.Module) or not channels:
        return 0
    pixels = size[0] * size[1]
    if getattr(vae, "use_tiling", False):
        side = getattr(vae, "tile_sample_min_size", None) or getattr(vae, "tile_sample_min_height", None)
        pixels = min(pixels, side**2) if side else pixels
    item = 4 if getattr(vae.config, "force_upcast", False) else vae.dtype.itemsize
    # The last upsampling hands its level's channels on at the full size; the picture itself is 3 in float32.
    return pixels * _HELD * channels[0] * item + size[0] * size[1] * 3 * 4
