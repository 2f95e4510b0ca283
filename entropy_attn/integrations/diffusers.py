"""`apply`: send the attention of a diffusers UNet through this package.

The only file that relies on names which diffusers does not document; tests/routing/test_diffusers_names.py pins them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention
from torch import nn

from ..recording import Recorder
from ..router import DenoiserCall, LayerSelection, Router, Unroutable
from ..scale import Kind, LogN, Policy
from .override import unwrap_call, wrap_call, wrapper_of
from .prompts import listen, tokenizer_of, unlisten

# Processors that compute attention without torch's scaled_dot_product_attention, so that there is nothing to route.
_OTHER_PROCESSORS = (
    "AttnProcessor",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "CustomDiffusionAttnProcessor",
    "CustomDiffusionXFormersAttnProcessor",
    "IPAdapterAttnProcessor",
    "IPAdapterXFormersAttnProcessor",
)
_REMEDY = (
    "set one that does, with unet.set_attn_processor(AttnProcessor2_0()) from diffusers.models.attention_processor "
    "(set_default_attn_processor() sets AttnProcessor, which does not)"
)
# Pipelines with one of these run more than two guidance parts in a batch, and do not say which.
OTHER_GUIDANCE = ("do_perturbed_attention_guidance", "image_guidance_scale")


class Handle:
    """One routing of one denoiser; `remove()`, or leaving it as a context manager, undoes it.

    layers: names of the routed attention layers, within the denoiser.
    """

    def __init__(self, denoiser: UNet2DConditionModel, pipe: DiffusionPipeline | None, router: Router):
        self.denoiser = denoiser
        self.router = router
        self._modules = dict(_attention_layers(denoiser))
        self.layers = tuple(self._modules)
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._next_step = 0
        self._timesteps: Any = None
        self._aside: int | None = None
        self._active = False
        self._entered = False

    @property
    def active(self) -> bool:
        """False once removed, or replaced by a later `apply` to the same denoiser."""
        return self._active

    @property
    def recorders(self) -> tuple[Recorder, ...]:
        return self.router.recorders

    def remove(self) -> None:
        """Give the denoiser its own attention back. Does nothing the second time."""
        if self._active:
            self._uninstall()
            if (pipe := self._pipe()) is not None:
                unlisten(pipe)

    def named_layers(self) -> Iterator[tuple[str, Attention]]:
        """The attention layers with their names, whether they are routed now or not."""
        return iter(self._modules.items())

    def reset_steps(self) -> None:
        """Count the next call of the denoiser as step 0.

        Needed only for a denoiser that is called without its pipeline: a pipeline's scheduler tells where a generation
        begins.
        """
        self._next_step = 0

    @contextmanager
    def aside(self, recorder: Recorder, step: int) -> Iterator[None]:
        """Calls of the denoiser in this block are no steps of the generation: all are `step`, told to `recorder` alone.

        A handle that is not installed is, for as long as the block lasts.
        """
        installed, outer = self._active, self._aside
        try:
            if not installed:
                self._install()
            self._aside = step
            with self.router.recorded_by(recorder):
                yield
        finally:
            self._aside = outer
            if not installed:
                self._uninstall()

    def __enter__(self) -> Handle:
        if not self._active:
            raise RuntimeError("this routing was removed or replaced: call apply again")
        self._entered = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._entered = False
        self.remove()

    def __repr__(self) -> str:
        state = f"{len(self.layers)} layers" if self._active else "removed"
        return f"<Handle on {type(self.denoiser).__name__}, scale={self.router.policy!r}, {state}>"

    def _install(self) -> None:
        self._active = True  # from the first wrapped module on, there is something to undo
        wrap_call(self.denoiser, self._call_denoiser)
        for name, module in self._modules.items():
            wrap_call(module, functools.partial(self._call_layer, name, module))
        if self.recorders and (pipe := self._pipe()) is not None:
            listen(pipe, self._hear_prompts)

    def _uninstall(self) -> None:
        self._active = False
        for module in (self.denoiser, *self._modules.values()):
            unwrap_call(module)

    def _hear_prompts(self, prompts: list[str] | None) -> None:
        for recorder in self.recorders:
            recorder.begin(prompts)

    @torch.compiler.disable(recursive=False)
    def _call_denoiser(self, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        sample = args[0] if args else kwargs["sample"]
        if self._aside is None:
            step, branches = self._count_step(), self._branches()
        else:
            step, branches = self._aside, ("all",)
        with self.router.denoiser_call(DenoiserCall(step, tuple(sample.shape[-2:]), branches)):
            return call(*args, **kwargs)

    @torch.compiler.disable  # policies and recorders are plain Python; what lies between the layers compiles
    def _call_layer(
        self, name: str, module: Attention, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        kind = _kind(*args, **kwargs)
        with self.router.layer_call(name, kind, lambda: _explain(module)):
            return call(*args, **kwargs)

    def _count_step(self) -> int:
        # Every generation has its scheduler lay out new timesteps. Comparing their values would wait for the device.
        pipe = self._pipe()
        timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
        if timesteps is not self._timesteps:
            self._timesteps = timesteps
            self._next_step = 0
        step = self._next_step
        self._next_step += 1
        return step

    def _branches(self) -> tuple[str, ...]:
        # A pipeline that has not run yet has no guidance: then it is not the caller.
        guided = getattr(self._pipe(), "do_classifier_free_guidance", False)
        return ("uncond", "cond") if guided else ("all",)


def apply(
    pipe_or_denoiser: DiffusionPipeline | UNet2DConditionModel,
    scale: Policy | None = LogN(),  # noqa: B008  (immutable)
    record: Recorder | Sequence[Recorder] | None = None,
    layers: str = "self",
    train_size: int | tuple[int, int] | None = None,
) -> Handle:
    """Route every attention layer of a UNet through this package, until `handle.remove()`.

    For pipelines around a `UNet2DConditionModel` (Stable Diffusion 1 and 2, SDXL, and their relatives), or for the UNet
    alone. Text encoders and the autoencoder stay as they are. Nothing outside this one denoiser is changed, but that
    with recorders the pipeline's `encode_prompt` tells them the prompts; copies are not routed. Applied again, the new
    routing takes the place of the old one, unless that one is the context manager of a `with` block, which raises.

    scale: a scale policy for the chosen layers: any callable(CallInfo). None leaves all layers their own scale.
    record: an `EntropyRecorder`, a `MapRecorder`, or a list of recorders. They see all layers, whatever `layers` is.
    layers: the layers that the policy is for: "self", "cross", "all", or a regular expression that is searched for in
        the layer's name ("up_blocks", r"mid_block.*attn1$"). The others keep their own scale.
    train_size: the size of the pictures that the model was trained on, an int or (height, width): in pixels for a
        pipeline, in latent cells for a UNet alone. None is the UNet's `config.sample_size`.

    Steps count calls of the denoiser from the start of a generation. A scheduler that calls it twice a step, such as
    Heun's, gives two.
    """
    denoiser, pipe = _denoiser_of(pipe_or_denoiser)
    selection = LayerSelection(layers)
    router = Router(scale, selection, record, _train_size(denoiser, pipe, train_size))
    handle = Handle(denoiser, pipe, router)
    _check_layers(handle, selection)
    _check_guidance(pipe, router.recorders)
    for recorder in router.recorders:
        recorder.attach(tokenizer_of(pipe))
    if (previous := handle_of(denoiser)) is not None:
        if previous._entered:
            raise RuntimeError("the denoiser is routed by an enclosing `with apply(...)` block: leave that first")
        previous.remove()
    handle._install()
    return handle


def handle_of(denoiser: nn.Module) -> Handle | None:
    """The routing that this denoiser is under."""
    handle = getattr(wrapper_of(denoiser), "__self__", None)
    return handle if isinstance(handle, Handle) else None


def plain_routing(denoiser: UNet2DConditionModel) -> Handle:
    """A routing that leaves every scale as it is, checked but not installed: for `Handle.aside`."""
    selection = LayerSelection()
    handle = Handle(denoiser, None, Router(None, selection, None, None))
    _check_layers(handle, selection)
    return handle


def _denoiser_of(target: object) -> tuple[UNet2DConditionModel, DiffusionPipeline | None]:
    if isinstance(target, UNet2DConditionModel):
        return target, None
    if isinstance(target, DiffusionPipeline):
        parts = target.components
        found = parts.get("unet") or parts.get("transformer") or parts.get("prior")
        if isinstance(found, UNet2DConditionModel):
            return found, target
        denoiser = "no denoiser that is known here" if found is None else f"a {type(found).__name__} as its denoiser"
        raise Unroutable(type(target).__name__, [f"it has {denoiser}", _needed(found)])
    if isinstance(target, nn.Module):
        raise Unroutable(type(target).__name__, [_needed(target)])
    raise TypeError(f"pipe_or_denoiser={target!r}: a diffusers pipeline or a UNet2DConditionModel is needed")


def _needed(found: object) -> str:
    # The result of torch.compile(model) has taken hold of the model's call as it was, before anything is routed.
    if isinstance(found, torch._dynamo.OptimizedModule):
        return "apply to the model itself, and compile it then"
    return "a UNet2DConditionModel is needed"


def _attention_layers(denoiser: nn.Module) -> list[tuple[str, Attention]]:
    return [(name, module) for name, module in denoiser.named_modules() if isinstance(module, Attention)]


def _check_layers(handle: Handle, selection: LayerSelection) -> None:
    """Refuse now what would only fail while sampling."""
    model = type(handle.denoiser).__name__
    if not handle.layers:
        raise Unroutable(model, ["it has no attention layer"])
    others = tuple(getattr(attention_processor, name) for name in _OTHER_PROCESSORS)
    for name, module in handle._modules.items():
        if module.added_kv_proj_dim is not None:
            raise Unroutable(f"layer {name!r} of {model}", ["its keys join text and image (added_kv_proj_dim)"])
        if type(module.processor) in others:
            raise Unroutable(f"layer {name!r} of {model}", [_explain(module)])
    if selection.pattern is not None and not any((name, "self") in selection for name in handle.layers):
        raise ValueError(f"layers={selection.layers!r}: matches none of the layers, such as {handle.layers[0]!r}")


def _check_guidance(pipe: DiffusionPipeline | None, recorders: Sequence[Recorder]) -> None:
    for name in OTHER_GUIDANCE:
        for recorder in recorders:
            if recorder.branches is None and hasattr(type(pipe), name):
                raise ValueError(
                    f"record={recorder!r}: {type(pipe).__name__} has {name}, so that its batch may have more parts "
                    f"than two; give {type(recorder).__name__}(branches=...) their names, in order"
                )


def _explain(module: Attention) -> str:
    return f"its processor, {type(module.processor).__name__}, makes no scaled_dot_product_attention call; {_REMEDY}"


def _kind(hidden_states: Any = None, encoder_hidden_states: Any = None, *args: Any, **kwargs: Any) -> Kind:
    """Of a call of `Attention`; some models hand a self-attention layer its own input as the context."""
    return "self" if encoder_hidden_states is None or encoder_hidden_states is hidden_states else "cross"


def _train_size(
    denoiser: UNet2DConditionModel, pipe: DiffusionPipeline | None, train_size: int | tuple[int, int] | None
) -> tuple[int, int] | None:
    """The latent size at training, or None where the model does not state it."""
    if train_size is None:
        return _pair(denoiser.config.sample_size)
    size = _pair(train_size)
    if size is None or len(size) != 2 or any(type(length) is not int or length < 1 for length in size):
        raise ValueError(f"train_size={train_size!r}: a positive int or a pair (height, width) of them is needed")
    if pipe is None:
        return size
    factor = getattr(pipe, "vae_scale_factor", None)
    if factor is None:
        raise ValueError(f"train_size={train_size!r}: {type(pipe).__name__} has no vae_scale_factor; apply to its unet")
    if any(length % factor for length in size):
        raise ValueError(f"train_size={train_size!r}: multiples of {factor} pixels are needed")
    return size[0] // factor, size[1] // factor


def _pair(size: Any) -> tuple[int, int] | None:
    return tuple(size) if isinstance(size, (tuple, list)) else None if size is None else (size, size)
