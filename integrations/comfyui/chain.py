"""The attention override of a model: scales first, then recorders, then what was there before."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from entropy_attn.ops.api import attention
from entropy_attn.recorders.base import Recorder
from entropy_attn.routing.calls import LayerSelection, describe
from entropy_attn.routing.recordings import Recordings
from entropy_attn.scale import CallInfo, Policy, resolve_scale

from .call import AttentionCall
from .families import family_of
from .tracker import KEY, OUTER_SAMPLE, Pass, Place, Tracker, UnknownCall

OVERRIDE = "optimized_attention_override"
log = logging.getLogger("entropy_attn.comfyui")


@dataclass(frozen=True, eq=False)
class Scale:
    """A scale policy for some calls.

    Attributes:
        policy: of entropy_attn.
        layers: "self" (image tokens among the keys: self- and joint attention) or "cross".
        train_size: (rows, columns) of the latents in training; None for a policy that does not need it.
        train_tokens: the image tokens of such a latent, for a model whose layers all have the same; None for a UNet.
    """

    policy: Policy
    layers: LayerSelection
    train_size: tuple[int, int] | None
    train_tokens: int | None

    def ratio(self, place: Place, call: AttentionCall) -> float | None:
        """The factor on the call's own scale; None for a call that the policy is not for."""
        info = call_info(place, call, self.train_size, self.train_tokens)
        if not self.layers.takes(info):
            return None
        chosen = resolve_scale(self.policy, info)
        return None if chosen is None else float(chosen) * info.head_dim**0.5


class Tap:
    """A recorder of entropy_attn on the attention of one model. A later sampling replaces what an earlier one gave."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        return self  # ModelPatcher.clone copies its options in depth; the node that reads holds this one

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one sampling."""
        self.begin()
        return executor(*args, **kwargs)

    def begin(self) -> None:
        """Forget the sampling before."""
        raise NotImplementedError

    def check_pass(self, current: Pass) -> None:
        """Refuse a pass whose record would have another meaning; called before its first call is recorded."""

    def finish_pass(self, current: Pass) -> None:
        """Refuse to go on if the pass gave nothing to record."""


class Chain:
    """What ComfyUI calls instead of its attention function: `chain(func, q, k, v, heads, ...)`.

    Scales multiply the query, because not all of ComfyUI's functions take a `scale`: those of version 0.3.64, and
    `attention3_sage` of later ones, ignore it. Recorders compute their statistics beside the call, whose result is that
    of ComfyUI's function, so an image is the same with and without them. A call whose kind is not known is passed on as
    it is, and the reason is logged once.

    Args:
        tracker: knows which call this is.
        scales, taps: what is done with it.
        earlier: the override that the model had, called with ComfyUI's function as it expects.
    """

    def __init__(
        self,
        tracker: Tracker,
        scales: tuple[Scale, ...] = (),
        taps: tuple[Tap, ...] = (),
        earlier: Any = None,
    ):
        self.tracker, self.scales, self.taps, self.earlier = tracker, scales, taps, earlier
        self._logged: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Chain:
        return self  # it is never changed, and a clone of the model has the same tracker

    def with_scale(self, scale: Scale) -> Chain:
        """This chain and one more scale.

        Raises:
            ValueError: it has one for the same layers, which would be multiplied with it.
        """
        if any(scale.layers == other.layers for other in self.scales):
            raise ValueError(f"layers: expected layers without a scale, got {scale.layers.layers!r}, which have one")
        return Chain(self.tracker, (*self.scales, scale), self.taps, self.earlier)

    def with_tap(self, tap: Tap) -> Chain:
        """This chain and one more recorder."""
        return Chain(self.tracker, self.scales, (*self.taps, tap), self.earlier)

    def __call__(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        call = AttentionCall.of(args, kwargs)
        try:
            place = self.tracker.place(call)
        except UnknownCall as error:
            place = None
            self._log(str(error))
        if place is not None:
            ratio = self._ratio(place, call)
            self._record(place, call, ratio)
            if ratio is not None:
                call = call.with_query(call.query * ratio)
        called = () if self.earlier is None else (func,)
        return (self.earlier or func)(*called, *call.bound.args, **call.bound.kwargs)

    def finish_pass(self, current: Pass) -> None:
        """A pass is over.

        Raises:
            RuntimeError: there were attention calls, and none that a scale or a recorder of this chain is for.
            ValueError: a recorder has nothing to record, and says why.
        """
        if not current.seen:  # the pass was skipped, as caches of other nodes do
            return
        for part in (*self.scales, *self.taps):
            if id(part) not in current.done:
                what = f"the scale for layers={part.layers.layers!r}" if isinstance(part, Scale) else "the recorder"
                reasons = "; ".join(current.reasons) or "all its calls are of another kind"
                raise RuntimeError(f"entropy_attn: {what} met none of {current.seen} attention calls: {reasons}")
        for tap in self.taps:
            tap.finish_pass(current)

    def _ratio(self, place: Place, call: AttentionCall) -> float | None:
        ratio: float | None = None
        for scale in self.scales:
            found = scale.ratio(place, call)
            if found is not None:
                place.current.done.add(id(scale))
                ratio = found if ratio is None else ratio * found
        return ratio

    def _record(self, place: Place, call: AttentionCall, ratio: float | None) -> None:
        if not self.taps:
            return
        info, current = call_info(place, call, None, None), place.current
        requests = []
        for tap in self.taps:
            if id(tap) not in current.done:
                tap.check_pass(current)
                current.done.add(id(tap))
            tap.recorder.observe(info, current.latent_size)
            if (request := tap.recorder.wants(info, current.latent_size)) is not None:
                requests.append((tap.recorder, request))
        if not requests:
            return
        arguments = call.arguments()
        if ratio is not None:
            arguments = arguments._replace(scale=arguments.scale * ratio)
        recordings = Recordings(place.layer_call, info, place.denoiser_call(None), True, tuple(requests))
        recordings.check(arguments)
        measured = attention(
            arguments.query,
            arguments.key,
            arguments.value,
            attn_mask=arguments.attn_mask,
            scale=arguments.scale,
            enable_gqa=arguments.enable_gqa,
            return_entropy=recordings.entropy,
            map_keys=recordings.map_keys,
        )
        recordings.give(measured, None, arguments)

    def _log(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("an attention call is left as it is: %s", reason)


def call_info(
    place: Place, call: AttentionCall, train_size: tuple[int, int] | None, train_tokens: int | None
) -> CallInfo:
    """The call as policies and recorders of entropy_attn see it."""
    return describe(
        place.layer_call,
        call.seqlen_q,
        call.seqlen_k,
        call.num_heads,
        call.head_dim,
        place.denoiser_call(train_tokens),
        train_size,
    )


def chain_of(model: Any) -> Chain | None:
    """The chain that is the override of a ModelPatcher; None if that is another one, or there is none."""
    found = model.model_options["transformer_options"].get(OVERRIDE)
    return found if isinstance(found, Chain) else None


def extended(model: Any, scale: Scale | None = None, tap: Tap | None = None) -> Any:
    """A clone of a ModelPatcher with one more scale or recorder; an override that it has is kept, and called last.

    Raises:
        ValueError: the model is not among those that are known, or it has a scale for these layers already.
    """
    family = family_of(model)
    chain = chain_of(model)
    clone = model.clone()
    if chain is None:
        earlier = clone.model_options["transformer_options"].get(OVERRIDE)
        chain = Chain(Tracker(family), earlier=earlier)
        chain.tracker.install(clone)
    if scale is not None:
        chain = chain.with_scale(scale)
    if tap is not None:
        chain = chain.with_tap(tap)
        clone.add_wrapper_with_key(OUTER_SAMPLE, KEY, tap.outer_sample)
    clone.model_options["transformer_options"][OVERRIDE] = chain
    return clone
