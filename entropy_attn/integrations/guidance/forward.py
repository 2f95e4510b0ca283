"""The forward pass that a guidance differentiates: the conditional part of a batch, no further than its maps."""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from entropy_attn.guidance.differentiable_maps import Enough, GraphMaps
from entropy_attn.integrations.diffusers.handle import Handle, handle_of
from entropy_attn.integrations.diffusers.models import halvings
from entropy_attn.recorders.map_sums import Size, preferred_size

# The maps of the papers (Attend-and-Excite, T-SAM's M = 256) have 16 x 16 tokens, a quarter of the sides of the latents
# of Stable Diffusion at 512 px. With smaller latents a quarter of the sides is too coarse for an object: at 8 x 8 the
# maps of the embedded model do not predict which objects will be missing (docs/guidance-measured.md).
LEAST_TOKENS = 256


def layers_by_size(handle: Handle, latent_size: Size) -> dict[Size, list[str]]:
    """Names of the layers with maps by the size (rows, columns) of their maps, for latents of this size.

    They attend to the text: by cross-attention in a UNet, by joint attention in a transformer.
    """
    if handle.model.joint:
        cells = handle.model.cells_a_token(handle.denoiser.config)
        names = [name for name, rule in handle.rules.items() if rule.kind == "joint"]
        return {(latent_size[0] // cells, latent_size[1] // cells): names}
    found: dict[Size, list[str]] = defaultdict(list)
    for name, module in handle.modules.items():
        if module.is_cross_attention:
            factor = 2 ** halvings(handle.denoiser, name)
            found[math.ceil(latent_size[0] / factor), math.ceil(latent_size[1] / factor)].append(name)
    return dict(found)


def map_layers(
    handle: Handle, latent_size: Size, map_size: Size | None, layers: str | re.Pattern[str] | None = None
) -> tuple[Size, list[str]]:
    """The size and the layers whose maps are averaged; None for both chooses as `Guidance` says."""
    found = layers_by_size(handle, latent_size)
    model = type(handle.denoiser).__name__
    if not found:
        raise ValueError(f"{model} has no cross-attention layer, so there are no maps")
    if layers is not None:
        known = [name for names in found.values() for name in names]
        found = {size: [name for name in names if re.search(layers, name)] for size, names in found.items()}
        found = {size: names for size, names in found.items() if names}
        if not found:
            raise ValueError(
                f"layers={layers!r}: no layer of {model} that attends to text has it in its name, from {known[0]!r} to "
                f"{known[-1]!r}"
            )
    size = preferred_size(found, latent_size, LEAST_TOKENS) if map_size is None else map_size
    if size not in found:
        sizes = ", ".join(f"{size} ({len(names)} layers)" for size, names in sorted(found.items()))
        kind = "joint-attention" if handle.model.joint else "cross-attention"
        raise ValueError(f"map_size={map_size}: no {kind} layer has it for latents of {latent_size}; there are {sizes}")
    return size, middle(found[size]) if layers is None and handle.model.joint else found[size]


def middle(names: list[str]) -> list[str]:
    """From a sixth to two thirds of the layers of a transformer: see `Guidance.layers`."""
    return names[len(names) // 6 : math.ceil(2 * len(names) / 3)]


def text_maps(
    routing: Handle, layers: list[str], size: Size, step: int, length: int, call: tuple[tuple, dict[str, Any]]
) -> Tensor:
    """The maps of every image, (B, h, w, length), float32, with their graph back to the inputs but not to the weights.

    routing: serves the pass, unless this denoiser is under an `apply` of the user: then that one does, with its scale,
        and its recorders do not see the pass.
    call: positional and keyword arguments of the denoiser, `conditional` already.
    """
    recorder = GraphMaps(layers, length)
    denoiser, (args, kwargs) = routing.denoiser, call
    with (
        (handle_of(denoiser) or routing).isolated_pass(recorder, step),
        _no_graph_of(denoiser),
        _strengths_kept(denoiser),
        contextlib.suppress(Enough),
    ):
        denoiser(*args, **kwargs)
    return recorder.mean(size)


@torch.inference_mode(False)
@torch.no_grad()
def conditional(value: Any, batch: int, part: int, parts: int) -> Any:
    """The part with index `part`, of `parts` equal ones, of everything in `value` that is a batch of parts * batch."""
    if isinstance(value, Tensor):
        if value.is_inference():
            value = value.clone()  # else autograd could not keep it
        whole = parts > 1 and value.dim() and len(value) == parts * batch
        return value[part * batch : (part + 1) * batch] if whole else value
    if isinstance(value, dict):
        return {name: conditional(each, batch, part, parts) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(conditional(each, batch, part, parts) for each in value)
    return value


@contextlib.contextmanager
def _no_graph_of(model: nn.Module) -> Iterator[None]:
    """No graph is kept for gradients of the weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _strengths_kept(model: nn.Module) -> Iterator[None]:
    """LoRA layers keep their strengths: older releases of diffusers change them in a forward pass that has to end."""
    layers: list[Any] = list(filter(_is_lora, model.modules()))
    before = [(layer.scaling, dict(layer.scaling)) for layer in layers]
    try:
        yield
    finally:
        for scaling, strengths in before:
            scaling.update(strengths)


def _is_lora(module: nn.Module) -> bool:
    return isinstance(getattr(module, "scaling", None), dict)
