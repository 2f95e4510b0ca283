"""`apply`: send the attention of a diffusers model through this package."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel
from torch import nn

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.compiled import NUMBER, number_of, trace_layer
from entropy_attn.integrations.diffusers.generation import Account, Place
from entropy_attn.integrations.diffusers.layers import kind_of, place_of, refusal_of, run_layer
from entropy_attn.integrations.diffusers.models.table import MODELS, LayerRule, latent_factor, model_of
from entropy_attn.integrations.diffusers.models.unet_levels import halvings
from entropy_attn.integrations.diffusers.module_calls import unwrap_call, wrap_call, wrapper_of
from entropy_attn.integrations.diffusers.private import AttentionLayer, is_context_parallel
from entropy_attn.integrations.diffusers.processors import COPY, SwappedProcessor, forget_copy, has_copy
from entropy_attn.integrations.diffusers.prompt_hook import listen, text_parts, unlisten
from entropy_attn.integrations.diffusers.row_texts import Encoded
from entropy_attn.recorders.base import Parts, Recorder, UnknownParts
from entropy_attn.routing.calls import DenoiserCall, LayerCall, LayerSelection, Rows
from entropy_attn.routing.router import Router
from entropy_attn.scale import Kind, LogN, Policy

# Pipelines with one of these run more than two guidance parts in a batch, and do not say which.
OTHER_GUIDANCE = ("do_perturbed_attention_guidance", "image_guidance_scale")


class Handle:
    """One routing of one denoiser; `remove()`, or leaving it as a context manager, undoes it.

    layers: names of the routed attention layers, within the denoiser.
    """

    def __init__(self, denoiser: ModelMixin, pipe: DiffusionPipeline | None, router: Router):
        self.denoiser = denoiser
        self.model = model_of(denoiser)
        self.router = router
        self._modules: dict[str, AttentionLayer] = {}
        self._rules: dict[str, LayerRule] = {}
        for name, module in denoiser.named_modules():
            rule = self.model.rule(name) if isinstance(module, AttentionLayer) else None
            if rule is not None and rule.kind is not None:
                self._modules[name], self._rules[name] = module, rule
        self.layers = tuple(self._modules)
        self._names = {module: name for name, module in self._modules.items()}
        self._number = number_of(self)
        self._by_call = any(rule.kind == "call" for rule in self._rules.values())
        # What is recorded, and calls that are split, stay outside of the graphs of torch.compile.
        self._traceable = not router.recorders and router.rows == "all"
        self._parameters = tuple(inspect.signature(type(denoiser).forward).parameters)[1:]
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._account = Account(self.model, pipe, null_label_of(denoiser))
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

    def place(self, number: int, kind: tuple[Kind, str | None] | None, index: int) -> LayerCall:
        """An attention call of a layer that torch.compile has traced. kind: None where the layer says it."""
        name = self.layers[number]
        rule = self._rules[name]
        return place_of(name, self._modules[name], rule, *(kind_of(rule) if kind is None else kind), index)

    def named_layers(self) -> Iterator[tuple[str, AttentionLayer]]:
        """The attention layers with their names, whether they are routed now or not."""
        return iter(self._modules.items())

    def reset_steps(self) -> None:
        """Count the next call of the denoiser as step 0.

        Needed only for a denoiser that is called by hand: a pipeline's scheduler tells where a generation begins.
        """
        self._account.reset()

    @contextmanager
    def aside(self, recorder: Recorder, step: int) -> Iterator[None]:
        """Calls of the denoiser in this block are no steps of the generation: all are `step`, told to `recorder` alone.

        A handle that is not installed is, for as long as the block lasts.
        """
        installed, outer, traceable = self._active, self._aside, self._traceable
        try:
            self._traceable = False
            if not installed:
                self._install()
            self._aside = step
            with self.router.recorded_by(recorder):
                yield
        finally:
            self._aside, self._traceable = outer, traceable
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
        around = self._call_layer  # one for all layers, that torch.compile may take them for alike
        for number, module in enumerate(self._modules.values()):
            wrap_call(module, around, SwappedProcessor)
            module.__dict__[NUMBER] = torch.tensor(number)
        self._make_copies()
        if self.recorders and (pipe := self._pipe()) is not None:
            listen(pipe, self._hear, self.model.tokenizers)

    def _uninstall(self) -> None:
        self._active = False
        for module in (self.denoiser, *self._modules.values()):
            unwrap_call(module)
            forget_copy(module)
            module.__dict__.pop(NUMBER, None)

    def _make_copies(self) -> None:
        for module in self._modules.values():
            has_copy(module)

    def _hear(self, encoded: Encoded) -> None:
        if self._account.hear(encoded) == "cond":
            for recorder in self.recorders:
                recorder.begin(encoded.prompts)

    @torch.compiler.disable(recursive=False)
    def _call_denoiser(
        self, denoiser: ModelMixin, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        _check_parallel(self.denoiser)
        self._make_copies()  # processors may have been exchanged
        arguments = dict(zip(self._parameters, args, strict=False)) | kwargs
        config = self.denoiser.config
        for name, reason in self.model.refused.items():
            if arguments.get(name) is not None:
                raise Unroutable(type(self.denoiser).__name__, [f"{name}: {reason}"])
        picture = self.model.picture(arguments, config)
        step, parts = self._place(arguments) if self._aside is None else (self._aside, Parts(("all",)))
        train_tokens = None
        if picture.tokens is not None and self.router.train_size is not None:
            train_tokens = self.model.picture_tokens(config, self.router.train_size, picture.frames)
        latents = arguments.get(self.model.latents)
        batch = None if latents is None else len(latents)
        running = DenoiserCall(step, picture.size, parts, picture.tokens, train_tokens, picture.references, batch)
        with self.router.denoiser_call(running):
            result = call(*args, **kwargs)
        if self._aside is None:
            for recorder in self.recorders:
                recorder.check_call()
        return result

    def _call_layer(self, module: AttentionLayer, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():
            name = self._names[module]
            return run_layer(self.router, name, module, self._rules[name], call, args, kwargs)
        if self._traceable and module.__dict__[COPY][1] is not None:
            return trace_layer(self._number, self._by_call, module, call, args, kwargs)
        return self._call_untraced(module, call, args, kwargs)

    @torch.compiler.disable  # recorders are plain Python; what lies between the layers compiles
    def _call_untraced(self, *arguments: Any) -> Any:
        return self._call_layer(*arguments)

    @torch.compiler.disable
    def _place(self, arguments: dict[str, Any]) -> tuple[int, Parts]:
        """The step, and the branches of this call for the recorders."""
        place = self._account.call(arguments)
        if not self.recorders:
            return place.step, Parts(("all",))
        if place.unheard:
            for recorder in self.recorders:
                recorder.begin(None)
        return place.step, _parts_for(self.recorders, place)


def apply(
    pipe_or_denoiser: DiffusionPipeline | ModelMixin,
    scale: Policy | None = LogN(),  # noqa: B008  (immutable)
    record: Recorder | Sequence[Recorder] | None = None,
    layers: str = "self",
    train_size: int | tuple[int, int] | None = None,
    rows: Rows = "all",
) -> Handle:
    """Route every attention layer of a denoiser through this package, until `handle.remove()`.

    For pipelines around one of the UNets and transformers of docs/models.md, or for the denoiser alone. Text encoders
    and the autoencoder stay as they are. Nothing outside this one denoiser is changed, but that with recorders the
    pipeline's `encode_prompt` tells them the prompts; copies are not routed. Applied again, the new routing takes the
    place of the old one, unless that one is the context manager of a `with` block, which raises.

    scale: a scale policy for the chosen layers: any callable(CallInfo). None leaves all layers their own scale.
    record: an `EntropyRecorder`, a `MapRecorder`, or a list of recorders. They see all layers, whatever `layers` is.
    layers: the layers that the policy is for: "self", "cross", "all", or a regular expression that is searched for in
        the layer's name ("up_blocks", r"mid_block.*attn1$"). The others keep their own scale.
    train_size: the size of the pictures that the model was trained on, an int or (height, width): in pixels for a
        pipeline, in latent cells for a denoiser alone. None is what the model or its pipeline states, as docs/models.md
        says for each.
    rows: of joint attention, the queries that the policy is for: "all", or those of the picture ("image"), which leaves
        the text's their own scale. The text attends over the same keys, so that its entropy drifts with their number
        as the picture's does, and "all" holds both; "image" leaves the text stream of the model as it was trained, at
        the price of two attention calls for one.

    Steps count the timesteps of a generation, however often the denoiser is called at each: for the branches of
    guidance one after the other, or for the views of a panorama. A scheduler with two timesteps a step, such as Heun's,
    gives two. Recorders are told the branches of each call by its texts; where these are not known, the first call
    raises an error that says what to give.
    """
    denoiser, pipe = _denoiser_of(pipe_or_denoiser)
    selection = LayerSelection(layers)
    router = Router(scale, selection, record, _train_size(denoiser, pipe, train_size), rows, _levels(denoiser))
    handle = Handle(denoiser, pipe, router)
    _check_layers(handle, selection)
    if scale is not None and selection.layers == "self" and not _attends_to_pictures(handle):
        raise ValueError(
            f"layers='self' with {type(denoiser).__name__}: none of its routed layers has image tokens among its keys; "
            "give layers='cross' or a regular expression, or scale=None"
        )
    _check_guidance(pipe, router.recorders)
    for recorder in router.recorders:
        recorder.attach(text_parts(pipe, handle.model.tokenizers, handle.model.joint))
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


def null_label_of(denoiser: ModelMixin) -> int | None:
    """The class label that stands for none, in a model that is conditioned on classes."""
    return getattr(denoiser.config, "num_embeds_ada_norm", None)


def _levels(denoiser: ModelMixin) -> dict[str, int]:
    """Of the layers of a UNet, how often the latent has been halved where they see it."""
    model = model_of(denoiser)
    if not model.halves:
        return {}
    names = (name for name, module in denoiser.named_modules() if isinstance(module, AttentionLayer))
    return {name: halvings(denoiser, name) for name in names if model.rule(name).kind is not None}


def _parts_for(recorders: Sequence[Recorder], place: Place) -> Parts:
    """The parts of this call; raises where a recorder needs to be told them, or was told others."""
    try:
        parts = place.parts()
    except UnknownParts as unknown:
        for recorder in recorders:
            if recorder.branches is None:
                name = type(recorder).__name__
                raise UnknownParts(
                    f"record={recorder!r}: which rows are of which branch is not known: {unknown}. Give "
                    f'{name}(branches=...), the names of the equal parts of every batch, such as ("uncond", "cond"), '
                    'or ("all",) if there is but one'
                ) from None
        return Parts(("all",))
    for recorder in recorders:
        place.check_stated(recorder.branches, parts)
    return parts


def _denoiser_of(target: object) -> tuple[ModelMixin, DiffusionPipeline | None]:
    if isinstance(target, DiffusionPipeline):
        parts = target.components
        found = parts.get("unet") or parts.get("transformer") or parts.get("prior")
        if parts.get("transformer_2") is not None:
            reasons = ["it has two denoisers: apply to each, pipe.transformer and pipe.transformer_2"]
            raise Unroutable(type(target).__name__, reasons)
        if found is not None and model_of(found) is not None:
            return found, target
        denoiser = "no denoiser that is known here" if found is None else f"a {type(found).__name__} as its denoiser"
        raise Unroutable(type(target).__name__, [f"it has {denoiser}", _needed(found)])
    if model_of(target) is not None:
        return target, None
    if isinstance(target, nn.Module):
        raise Unroutable(type(target).__name__, [_needed(target)])
    raise TypeError(f"pipe_or_denoiser={target!r}: a diffusers pipeline or denoiser is needed")


def _needed(found: object) -> str:
    # The result of torch.compile(model) has taken hold of the model's call as it was, before anything is routed.
    if isinstance(found, torch._dynamo.OptimizedModule):
        return "apply to the model itself, and compile it then"
    return "one of these is needed: " + ", ".join(model.denoiser for model in MODELS)


def _check_layers(handle: Handle, selection: LayerSelection) -> None:
    """Refuse now what would only fail while sampling."""
    model = type(handle.denoiser).__name__
    if not handle.layers:
        raise Unroutable(model, ["it has no attention layer"])
    _check_parallel(handle.denoiser)
    for name, module in handle._modules.items():
        if (reason := refusal_of(module)) is not None:
            raise Unroutable(f"layer {name!r} of {model}", [reason])
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


def _check_parallel(denoiser: ModelMixin) -> None:
    if is_context_parallel(denoiser):
        raise Unroutable(
            type(denoiser).__name__, ["its sequence is spread over devices (context parallel), so that no one sees N"]
        )


def _attends_to_pictures(handle: Handle) -> bool:
    return any(rule.kind not in ("cross", "text") for rule in handle._rules.values())


def _train_size(
    denoiser: ModelMixin, pipe: DiffusionPipeline | None, train_size: int | tuple[int, int] | None
) -> tuple[int, int] | None:
    """The latent size at training, or None where the model does not state it."""
    if train_size is None:
        return model_of(denoiser).train_size(denoiser, pipe)
    size = (train_size, train_size) if not isinstance(train_size, (tuple, list)) else tuple(train_size)
    if len(size) != 2 or any(type(length) is not int or length < 1 for length in size):
        raise ValueError(f"train_size={train_size!r}: a positive int or a pair (height, width) of them is needed")
    if pipe is None:
        return size
    factor = latent_factor(pipe)
    if any(length % factor for length in size):
        raise ValueError(f"train_size={train_size!r}: multiples of {factor} pixels are needed")
    return size[0] // factor, size[1] // factor
