"""`apply`: send the attention of a diffusers model through this package."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.branches import check_guidance
from entropy_attn.integrations.diffusers.handle import Handle, handle_of
from entropy_attn.integrations.diffusers.layers import refusal_of
from entropy_attn.integrations.diffusers.models import layer_blocks, layer_halvings
from entropy_attn.integrations.diffusers.private import parallel_config_of
from entropy_attn.integrations.diffusers.prompt_hook import text_parts
from entropy_attn.integrations.diffusers.target import latent_train_size, resolve_target
from entropy_attn.mix import Mix
from entropy_attn.recorders.base import Recorder
from entropy_attn.routing.calls import LayerSelection, Rows
from entropy_attn.routing.router import Router
from entropy_attn.scale import LogN, Policy


def apply(
    pipe_or_denoiser: DiffusionPipeline | ModelMixin,
    scale: Policy | None = LogN(),  # noqa: B008  (immutable)
    record: Recorder | Sequence[Recorder] | None = None,
    layers: str = "self",
    train_size: int | tuple[int, int] | None = None,
    rows: Rows = "all",
    mix: Mix | None = None,
) -> Handle:
    """Route every attention layer of a denoiser through this package, until `handle.remove()`.

    For pipelines around one of the UNets and transformers of docs/models.md, or for the denoiser alone. Text encoders
    and the autoencoder are not routed, and copies of the denoiser are not either. With recorders, the calls of the
    pipeline and of its `encode_prompt` are followed too. docs/routing.md says how.

    Steps count the timesteps of a generation, however often the denoiser is called at each: for one branch of guidance
    after the other, or for the views of a panorama. A scheduler with two timesteps per step, such as Heun's, gives two.
    Recorders get the branches of each call from its texts; where these are not known, the first call raises.

    Args:
        pipe_or_denoiser: a diffusers pipeline, or its denoiser. If it is routed already, the new routing replaces the
            old one.
        scale: a scale policy for the chosen layers: any callable (CallInfo) -> float, tensor, `ea.scale.KeyGroups` or
            None. None keeps the model's default scale in all layers.
        record: an `EntropyRecorder`, a `MapRecorder`, or a list of recorders. They see all layers, whatever `layers`
            is. Only with a pipeline do they find the branches of a batch; with a denoiser alone each batch is one part,
            unless they state `branches`.
        layers: the layers that the policy is for: "self", "cross", "all", or a regular expression that is searched for
            in the layer's name ("up_blocks", r"mid_block.*attn1$"). The others keep the model's default scale.
        train_size: the size of the images that the model was trained on, an int or (height, width): in pixels for a
            pipeline, in latent cells for a denoiser alone. None takes what the model or its pipeline states, as
            docs/models.md says for each.
        rows: the queries of joint attention that the policy is for: "all", or those of the image ("image"), which keeps
            the default scale for the text's. The text attends over the same keys, so its entropy drifts with their
            number as the image's does, and "all" holds both; "image" leaves the text stream of the model as it was
            trained, at the price of two attention calls instead of one.
        mix: an `ea.mix.Mix`, such as `ea.mix.NAG()`: calls in its layers are answered twice, and what goes on is a
            function of both answers. Recorders see the first one. None mixes nothing.

    Returns:
        The `Handle` of the routing. It is a context manager that removes the routing at its end.

    Raises:
        TypeError: `pipe_or_denoiser`, `scale`, `record`, `layers` or `mix` is of a wrong type.
        ValueError: `layers` is no regular expression, or matches no layer, or leaves `scale` without a layer that it
            can serve; `train_size` is no size, or no multiple of the pixels of a latent cell; the policy needs the
            training size, or the number of text tokens at training, which is not known; `rows` is unknown; a recorder
            needs `branches`, because the pipeline has another kind of guidance.
        Unroutable: a `RuntimeError`. The denoiser is none of docs/models.md, or compiled; the pipeline has two
            denoisers; a layer's processor or attention backend does not end in torch's attention. It lists the reasons.
        RuntimeError: the denoiser is routed by an enclosing `with apply(...)` block.

    While the pipeline runs, routed calls raise `Unroutable` for arguments and processors that cannot be served, and
    `UnknownParts`, a `ValueError`, where a recorder needs `branches` to be stated.
    """
    denoiser, pipe = resolve_target(pipe_or_denoiser)
    selection = LayerSelection(layers)
    size = latent_train_size(denoiser, pipe, train_size)
    router = Router(scale, selection, record, size, rows, layer_halvings(denoiser), layer_blocks(denoiser), mix)
    handle = Handle(denoiser, pipe, router)
    check_layers(handle, selection)
    if router.mixing is not None:
        check_layers(handle, router.mixing.layers)
    handle.check_heads()
    handle.check_own_text()
    if scale is not None and selection.layers == "self" and not _attends_to_images(handle):
        raise ValueError(
            f"layers='self' with {type(denoiser).__name__}: none of its routed layers has image tokens among its keys; "
            "give layers='cross' or a regular expression, or scale=None"
        )
    check_guidance(pipe, router.recorders)
    for recorder in router.recorders:
        recorder.attach(text_parts(pipe, handle.model))
    if (previous := handle_of(denoiser)) is not None:
        if previous.entered:
            raise RuntimeError("the denoiser is routed by an enclosing `with apply(...)` block: leave that first")
        previous.remove()
    handle.install()
    return handle


def plain_routing(denoiser: UNet2DConditionModel) -> Handle:
    """A routing that keeps every scale, checked but not installed: for `Handle.isolated_pass`.

    Raises:
        Unroutable: the denoiser cannot be routed, or its sequence is spread over devices.
    """
    if parallel_config_of(denoiser) is not None:
        reason = (
            "its sequence is spread over devices (context parallel), so each has the gradient of some of the latents "
            "only; guide on one device"
        )
        raise Unroutable(type(denoiser).__name__, [reason])
    selection = LayerSelection()
    handle = Handle(denoiser, None, Router(None, selection, None, None))
    check_layers(handle, selection)
    return handle


def check_layers(handle: Handle, selection: LayerSelection) -> None:
    """Refuse now what would fail only while sampling."""
    model = type(handle.denoiser).__name__
    if not handle.layers:
        raise Unroutable(model, ["it has no attention layer"])
    for name, module in handle.modules.items():
        if (reason := refusal_of(module)) is not None:
            raise Unroutable(f"layer {name!r} of {model}", [reason])
    if selection.pattern is not None and not any((name, "self") in selection for name in handle.layers):
        raise ValueError(f"layers={selection.layers!r}: matches none of the layers, such as {handle.layers[0]!r}")


def _attends_to_images(handle: Handle) -> bool:
    return any(rule.kind not in ("cross", "text") for rule in handle.rules.values())
