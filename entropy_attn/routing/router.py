"""What a routed attention call goes through: the scale policy, the attention itself, the recorders.

Knows nothing of any model library: an integration says which layer is calling and when the denoiser runs.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from entropy_attn.errors import Unsupported
from entropy_attn.ops import api as ops
from entropy_attn.recorders.base import Parts, Recorder, Wish, unknown_rows
from entropy_attn.scale import CallInfo, Kind, Policy, TokenRatio, needs_train_tokens, resolve_scale, training_tokens

_training_tokens = functools.lru_cache(maxsize=4096)(training_tokens)  # the same few in every call

# Of joint attention, the queries that the scale is for: all, or those of the picture alone.
Rows = Literal["all", "image"]


class Unroutable(Unsupported):
    """A model, or a layer of it, whose attention cannot be routed; `reasons` says why, with the remedy if any."""

    def __init__(self, what: str, reasons: list[str]):
        self.what = what
        self.reasons = list(reasons)
        RuntimeError.__init__(self, f"cannot route {what}: " + "; ".join(self.reasons))

    def __reduce__(self) -> Any:
        return type(self), (self.what, self.reasons)


@dataclass(frozen=True)
class DenoiserCall:
    """One forward pass of the denoiser.

    parts: the branches that its batch consists of, for recorders that are not given any.
    latent_size: (rows, columns) of the picture in latent cells.
    image_tokens, train_tokens: what every layer sees of the picture, and saw of it in training. None in a model whose
        layers see it halved more or less often: there it goes by the latent size, layer by layer.
    reference_tokens: those of the image tokens that are of other pictures; they come last.
    batch: rows of the latents; None where they are not known.
    """

    step: int
    latent_size: tuple[int, int]
    parts: Parts = Parts(("all",))  # noqa: RUF009  (immutable)
    image_tokens: int | None = None
    train_tokens: int | None = None
    reference_tokens: int = 0
    batch: int | None = None


@dataclass(frozen=True)
class LayerCall:
    """One attention call of a layer: what it is of, and where the text is.

    text: where it lies among the keys, and among the queries of joint attention if they have any of it. None: nowhere.
    sample, samples: the call is for this one of so many samples of the batch; None is for all of them.
    ragged: see `LayerRule` of the integration; then the queries cannot be told apart by their place.
    """

    layer: str
    kind: Kind
    text: Literal["first", "last", "all"] | None = None
    sample: int | None = None
    samples: int = 1
    ragged: bool = False


@dataclass(frozen=True)
class LayerSelection:
    """Which layers the scale policy is for: "self" (image tokens among the keys), "cross", "all", or a regex.

    The regex is searched for in the layer's name: "up_blocks", r"attn1$", "^mid_block".
    """

    layers: str | re.Pattern[str] = "self"

    def __post_init__(self) -> None:
        if isinstance(self.layers, re.Pattern):
            return
        if not isinstance(self.layers, str) or not self.layers:
            raise TypeError(f"layers={self.layers!r}: 'self', 'cross', 'all' or a regular expression is needed")
        if self.pattern is None:
            return
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(f"layers={self.layers!r}: not a regular expression: {error}") from None

    @property
    def pattern(self) -> str | re.Pattern[str] | None:
        """The regex, or None for one of the three words."""
        return None if self.layers in ("self", "cross", "all") else self.layers

    def __contains__(self, layer: tuple[str, Kind]) -> bool:
        name, kind = layer
        if self.pattern is not None:
            return re.search(self.pattern, name) is not None
        return self.layers == "all" or (kind == "cross") == (self.layers == "cross")

    def takes(self, info: CallInfo) -> bool:
        """Whether the policy is for this call. "self" leaves out the text that attends to itself."""
        if self.layers == "self" and info.text_tokens == info.seqlen_k:
            return False
        return (info.layer, info.kind) in self


class Router:
    """One handle's attention: its policy, its layers, its recorders, and the denoiser calls in progress.

    A denoiser call belongs to the thread that makes it. A layer that is called outside one, as gradient checkpointing
    does when it recomputes, goes by the latest denoiser call and is not recorded again.
    """

    def __init__(
        self,
        policy: Policy | None,
        layers: LayerSelection,
        record: Recorder | Sequence[Recorder] | None,
        train_size: tuple[int, int] | None,
        rows: Rows = "all",
        halvings: Mapping[str, int] | None = None,
    ):
        """halvings: of each layer of a UNet, how often the latent has been halved where it sees the picture."""
        if policy is not None and not callable(policy):
            raise TypeError(f"scale={policy!r}: a policy, called with a CallInfo, is needed; a number is Fixed(number)")
        if needs_train_tokens(policy):
            # A policy made of others may have one that needs none for cross-attention.
            if layers.layers in ("cross", "all") and isinstance(policy, TokenRatio):
                own = type(policy).__name__
                raise ValueError(
                    f"layers={layers.layers!r} with {own}(train_tokens='auto'): the keys of cross-attention are text "
                    f"tokens, whose number at training is not known; give {own}(train_tokens=...) or layers='self'"
                )
            if train_size is None:
                raise ValueError(
                    f"scale={policy!r} needs the training size, which the model does not state: give "
                    "apply(train_size=...), or train_tokens=... instead of 'auto'"
                )
        self.policy = policy
        self.layers = layers
        self.recorders = _recorders(record)
        self.train_size = train_size
        if rows not in ("all", "image"):
            raise ValueError(f"rows={rows!r}: 'all' or 'image' is needed")
        self.rows = rows
        self._halvings = halvings or {}
        self._running = threading.local()
        self._latest: DenoiserCall | None = None

    @contextmanager
    def denoiser_call(self, call: DenoiserCall) -> Iterator[None]:
        """The denoiser runs in this thread for as long as the block lasts."""
        outer = getattr(self._running, "call", None)
        self._running.call = self._latest = call
        try:
            yield
        finally:
            self._running.call = outer

    @contextmanager
    def recorded_by(self, recorder: Recorder) -> Iterator[None]:
        """This recorder alone is told of this thread's calls, for as long as the block lasts."""
        outer = getattr(self._running, "recorders", None)
        self._running.recorders = (recorder,)
        try:
            yield
        finally:
            self._running.recorders = outer

    @property
    def watching(self) -> bool:
        """Whether anything is recorded of what this thread calls now."""
        return bool(getattr(self._running, "recorders", None) or self.recorders)

    def attention(
        self,
        place: LayerCall,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        record: bool = True,
    ) -> torch.Tensor:
        """Stands in for torch's scaled_dot_product_attention in `place`; from `query` on the arguments are its.

        record: False for a call that recorders are not to see.
        """
        running = getattr(self._running, "call", None)
        call = running or self._latest
        info = self.describe(place, query.shape[-2], key.shape[-2], query.shape[-3], query.shape[-1], call)
        own, text_rows = scale, None
        if self.layers.takes(info):
            chosen = resolve_scale(self.policy, info)
            if isinstance(chosen, torch.Tensor):
                chosen = chosen.to(query.device, non_blocking=True)  # or the host would wait for the device
            scale = own if chosen is None else chosen
            if self.rows == "image" and chosen is not None:
                text_rows = _rows(place, info)[1]
        wishes = self._wishes(info, call) if record else []
        options = {"dropout_p": dropout_p, "is_causal": is_causal, "enable_gqa": enable_gqa}
        if text_rows is None:
            return self._attend(place, info, wishes, query, key, value, attn_mask, scale, **options)
        if place.ragged or is_causal:
            reason = "is causal" if is_causal else "has pictures that begin at different places of the sequence"
            raise Unroutable(f"layer {place.layer!r}", [f"rows='image': it {reason}; give rows='all'"])
        image_rows = _rows(place, info)[0]
        parts = [
            self._attend(
                place, info, told, query[..., rows, :], key, value, _of_rows(attn_mask, rows), factor, **options
            )
            for rows, factor, told in ((image_rows, scale, wishes), (text_rows, own, []))
        ]
        return torch.cat(parts if place.text == "last" else parts[::-1], dim=-2)

    def _attend(
        self,
        place: LayerCall,
        info: CallInfo,
        wishes: list[tuple[Recorder, Wish]],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None,
        scale: float | torch.Tensor | None,
        dropout_p: float,
        is_causal: bool,
        enable_gqa: bool,
    ) -> torch.Tensor:
        """Attention, and what is recorded of it. `query` is all rows of the call, or those of the picture alone."""
        options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        if not wishes:
            return ops.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, **options)
        if dropout_p > 0.0:
            raise Unroutable(
                f"layer {place.layer!r}", [f"dropout_p={dropout_p}: attention is recorded without dropout only"]
            )
        self._check_rows(place, query, wishes)
        # Recorders count positions of the text, which is not always first among the keys.
        offset = info.seqlen_k - info.text_tokens if place.text == "last" else 0
        keys = _cover([wish for _, wish in wishes])
        wants_entropy = any(wish == "entropy" for _, wish in wishes)
        result = ops.attention(
            query,
            key,
            value,
            return_entropy=wants_entropy,
            map_keys=None if keys is None else (keys[0] + offset, keys[1] + offset),
            **options,
        )
        running = getattr(self._running, "call", None)
        if running is not None:
            used = info.head_dim**-0.5 if scale is None else scale
            rows = slice(None)
            if not place.ragged:
                first = _rows(place, info)[0].start or 0 if query.shape[-2] == info.seqlen_q else 0
                rows = slice(first, first + info.picture_queries)
            for recorder, wish in wishes:
                if wish == "entropy":
                    measured = result.entropy[..., rows]
                else:
                    measured = result.map[:, rows, wish[0] - keys[0] : wish[1] - keys[0]]
                parts = running.parts if recorder.branches is None else Parts(recorder.branches)
                if place.sample is None:
                    measured, branches = parts.sort(measured), parts.names
                else:
                    branches = (parts.name_of(place.sample, place.samples),)
                recorder.record(info, used, measured, branches, running.latent_size)
        return result.out

    def _check_rows(self, place: LayerCall, query: torch.Tensor, wishes: list[tuple[Recorder, Wish]]) -> None:
        """The rows of the call are those of the denoiser's batch, or there is nothing to tell apart among them."""
        call = getattr(self._running, "call", None)
        if call is None:  # a layer by itself: nothing is recorded
            return
        batch = None if place.sample is not None else call.batch
        for recorder, _ in wishes:
            names = call.parts.names if recorder.branches is None else recorder.branches
            if (reason := unknown_rows(query, batch, names)) is not None:
                raise Unroutable(f"layer {place.layer!r}", [reason])

    def _wishes(self, info: CallInfo, call: DenoiserCall | None) -> list[tuple[Recorder, Wish]]:
        """Who wants what of this call."""
        if call is None or not call.parts.names:  # a layer by itself, or a call that is no part of the generation
            return []
        recorders = getattr(self._running, "recorders", None) or self.recorders
        wishes = [(recorder, recorder.wants(info, call.latent_size)) for recorder in recorders]
        return [(recorder, wish) for recorder, wish in wishes if wish is not None]

    def scale_of(
        self, place: LayerCall, seqlen_q: int, seqlen_k: int, num_heads: int, head_dim: int
    ) -> float | torch.Tensor | None:
        """What the policy gives an attention call of this thread; None leaves it its own scale."""
        call = getattr(self._running, "call", None) or self._latest
        info = self.describe(place, seqlen_q, seqlen_k, num_heads, head_dim, call)
        return resolve_scale(self.policy, info) if self.layers.takes(info) else None

    def describe(
        self, place: LayerCall, seqlen_q: int, seqlen_k: int, num_heads: int, head_dim: int, call: DenoiserCall | None
    ) -> CallInfo:
        """One attention call, as policies and recorders are told of it."""
        train_tokens, text_tokens = None, 0
        if place.text == "all":
            text_tokens = seqlen_k
        elif place.kind != "cross" and call is not None:
            flat = call.image_tokens is not None
            if place.kind == "joint":
                # Where layers differ, the queries are the picture's alone.
                text_tokens = seqlen_k - (call.image_tokens if flat else seqlen_q)
            if flat:
                train_tokens = call.train_tokens
            elif self.train_size is not None:
                train_tokens = _training_tokens(
                    seqlen_k - text_tokens,
                    call.latent_size,
                    self.train_size,
                    halvings=self._halvings.get(place.layer),
                )
        return CallInfo(
            layer=place.layer,
            kind=place.kind,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            num_heads=num_heads,
            head_dim=head_dim,
            train_tokens=train_tokens,
            text_tokens=text_tokens,
            step=call.step if call is not None else 0,
            reference_tokens=call.reference_tokens if call is not None and place.kind != "cross" else 0,
        )


def _rows(place: LayerCall, info: CallInfo) -> tuple[slice, slice | None]:
    """The queries of the picture, and those of the text, of joint attention; all of them and None otherwise."""
    text = info.seqlen_q - (info.seqlen_k - info.text_tokens)
    if place.kind != "joint" or text <= 0:
        return slice(None), None
    first, last = slice(0, text), slice(text, None)
    if place.text == "first":
        return last, first
    image = info.seqlen_q - text
    return slice(0, image), slice(image, None)


def _of_rows(attn_mask: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    """The mask of some of the queries."""
    if attn_mask is None or attn_mask.dim() < 2 or attn_mask.shape[-2] == 1:
        return attn_mask
    return attn_mask[..., rows, :]


def _recorders(record: Recorder | Sequence[Recorder] | None) -> tuple[Recorder, ...]:
    if record is None:
        return ()
    recorders = (record,) if isinstance(record, Recorder) else record
    if not isinstance(recorders, (tuple, list)) or not recorders or not all(isinstance(r, Recorder) for r in recorders):
        raise TypeError(f"record={record!r}: an EntropyRecorder, a MapRecorder, a list of them, or None is needed")
    if len({id(recorder) for recorder in recorders}) < len(recorders):
        raise ValueError(f"record={record!r}: the same recorder is given twice")
    return tuple(recorders)


def _cover(wishes: list[Wish]) -> tuple[int, int] | None:
    """The smallest range of keys with every range that is wanted."""
    ranges = [wish for wish in wishes if isinstance(wish, tuple)]
    return (min(start for start, _ in ranges), max(stop for _, stop in ranges)) if ranges else None


class AttentionCalls(TorchFunctionMode):
    """Hands torch's attention calls of this thread to `attend` while entered."""

    def __init__(self, attend: Callable[..., torch.Tensor]):
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        # Torch leaves this mode for the duration of this method, so `attend` may call torch's attention itself.
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
