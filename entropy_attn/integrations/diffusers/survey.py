"""What routing would do to each attention layer of a denoiser at a size, derived from its structure alone.

Nothing runs, so the denoiser may be without weights, on torch's meta device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline, ModelMixin

from entropy_attn.integrations.diffusers.handle import Handle
from entropy_attn.integrations.diffusers.layers import kind_of, refusal_of
from entropy_attn.integrations.diffusers.models import LayerRule, Model, halvings, latent_factor, layer_blocks
from entropy_attn.integrations.diffusers.models.image_size import padded
from entropy_attn.integrations.diffusers.private import AttentionLayer
from entropy_attn.integrations.diffusers.steps import first_sigma
from entropy_attn.integrations.diffusers.target import Size, latent_train_size, resolve_target
from entropy_attn.ops.choice import chosen_impl
from entropy_attn.routing.calls import LayerSelection
from entropy_attn.routing.router import Router
from entropy_attn.scale import CallInfo, KeyGroups, Kind, Policy, resolve_scale


@dataclass(frozen=True)
class LayerReport:
    """One attention layer. None stands for what is not known or does not apply.

    scale: what the policy returns; None keeps the model's default scale.
    impl, impl_recorded: the implementation that serves it, without and with a recorder.
    refused: why it is not routed, or the policy fails on it.
    """

    layer: str
    kind: str | None
    text: str | None
    route: str
    heads: int
    head_dim: int
    seqlen_q: int | None = None
    seqlen_k: int | None = None
    train_tokens: int | None = None
    text_tokens: int | None = None
    scale: float | None = None
    impl: str | None = None
    impl_recorded: str | None = None
    refused: str | None = None

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


def survey(
    pipe_or_denoiser: DiffusionPipeline | ModelMixin,
    size: Size,
    *,
    scale: Policy | None,
    layers: str = "self",
    train_size: int | Size | None = None,
    frames: int = 1,
    text_tokens: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[LayerReport]:
    """One report per layer, in the order of the modules.

    Args:
        pipe_or_denoiser, scale, layers, train_size: as in `apply`.
        size: (height, width) in pixels for a pipeline, in latent cells for a denoiser alone.
        frames: of a video, in tokens.
        text_tokens: length of the text; None is the usual one of the model.
        device, dtype: where and in what type the layers would compute.

    Raises:
        TypeError, ValueError, Unroutable: what `apply` raises for the model as a whole.
        ValueError: `size` is no multiple of the pixels of a latent cell.
    """
    denoiser, pipe = resolve_target(pipe_or_denoiser)
    factor = 1 if pipe is None else latent_factor(pipe)
    if any(side % factor or side < factor for side in size):
        raise ValueError(f"size: expected multiples of {factor} pixels, got {size}")
    latent = size[0] // factor, size[1] // factor
    selection = LayerSelection(layers)
    train, blocks = latent_train_size(denoiser, pipe, train_size), layer_blocks(denoiser)
    handle = Handle(denoiser, pipe, Router(scale, selection, None, train, blocks=blocks))
    sigma = first_sigma(getattr(pipe, "scheduler", None))
    text = handle.model.text_tokens if text_tokens is None else text_tokens
    return [
        _report(handle, name, module, latent, text, frames, sigma, device, dtype)
        for name, module in denoiser.named_modules()
        if isinstance(module, AttentionLayer)
    ]


def _report(
    handle: Handle,
    name: str,
    module: AttentionLayer,
    latent: Size,
    text: int,
    frames: int,
    sigma: float,
    device: str,
    dtype: torch.dtype,
) -> LayerReport:
    model, denoiser = handle.model, handle.denoiser
    rule = model.rule(name)
    heads = module.heads
    head_dim = getattr(module, "head_dim", None) or module.inner_dim // heads
    facts = {"layer": name, "heads": heads, "head_dim": head_dim, "route": model.route}
    if rule is None or rule.kind is None:
        note = "no rule of the table matches it" if rule is None else rule.note
        return LayerReport(**facts, kind=None, text=None, refused=note)
    kind, text_position = _kind(module, rule)
    image, train = _tokens(model, denoiser, name, latent, frames), None
    if handle.router.train_size is not None:
        train = _tokens(model, denoiser, name, handle.router.train_size, frames)
    if model.pad:
        text = padded(text)
    of_text = {"all": text, None: 0}.get(text_position, text)
    if kind == "self" and text_position == "all":
        queries, keys, train = text, text, None
    elif kind == "cross":
        queries, keys, train = image, text, None
    else:
        keys = image + of_text
        queries = image if rule.kind == "call" else keys
    blocks = handle.router.blocks
    info = CallInfo(
        name, kind, queries, keys, heads, head_dim, train, of_text, text=cast(Any, text_position), latent_size=latent,
        # of the first step of a generation without guidance
        timestep=1000.0, sigma=sigma, num_steps=1, batch=1, branches=("all",),
        block=None if blocks is None else blocks.of_layer[name], num_blocks=None if blocks is None else blocks.number,
    )  # fmt: skip
    refused, factor = refusal_of(module), None
    if refused is None and handle.router.layers.takes(info):
        try:
            factor = resolve_scale(handle.router.policy, info)
            if isinstance(factor, KeyGroups):
                factor = factor.scale
        except (ValueError, TypeError) as error:
            refused = str(error)
    return LayerReport(
        **facts,
        kind=kind,
        text=text_position if kind == "joint" else None,
        seqlen_q=queries,
        seqlen_k=keys,
        train_tokens=train,
        text_tokens=of_text,
        scale=float(factor) if isinstance(factor, (int, float)) else None,
        impl=_impl(info, device, dtype, recorded=False),
        impl_recorded=_impl(info, device, dtype, recorded=True),
        refused=refused,
    )


def _kind(module: AttentionLayer, rule: LayerRule) -> tuple[Kind, str | None]:
    if rule.kind != "call":
        return kind_of(rule)
    if module.added_kv_proj_dim is not None and not module.only_cross_attention:
        return "joint", "first"
    crosses = module.is_cross_attention or module.added_kv_proj_dim is not None
    return ("cross", "all") if crosses else ("self", None)


def _tokens(model: Model, denoiser: ModelMixin, name: str, latent: Size, frames: int) -> int:
    """Image tokens in this layer."""
    if not model.halves:
        return model.image_tokens(denoiser.config, latent, frames)
    factor = 2 ** halvings(denoiser, name)
    return math.ceil(latent[0] / factor) * math.ceil(latent[1] / factor)


def _impl(info: CallInfo, device: str, dtype: torch.dtype, recorded: bool) -> str:
    """Chosen for tensors of these shapes that take no memory."""

    def of_length(length: int) -> torch.Tensor:
        shape = 1, info.num_heads, length, info.head_dim
        return torch.empty(1, 1, 1, info.head_dim, dtype=dtype, device=device).expand(shape)

    query, key = of_length(info.seqlen_q), of_length(info.seqlen_k)
    return chosen_impl(query, key, key, return_entropy=recorded)


def refusals(reports: list[LayerReport]) -> Iterator[tuple[str, list[str]]]:
    """Every reason, with the layers that it applies to."""
    reasons = dict.fromkeys(report.refused for report in reports if report.refused)
    for reason in reasons:
        yield reason, [report.layer for report in reports if report.refused == reason]
