"""Attention scale, entropy probe and word maps for ComfyUI. Link or copy this folder into ComfyUI/custom_nodes."""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls to get the nodes; the rest of the folder does not need ComfyUI to be imported."""
    from .nodes import EntropyAttnExtension

    return EntropyAttnExtension()
