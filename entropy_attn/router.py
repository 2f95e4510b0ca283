"""What a routed attention call goes through: the scale policy, the attention itself, the recorders.

Knows nothing of any model library: an integration says which layer is calling and when the denoiser runs.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from . import ops
from .errors import Unsupported
from .recording import Recorder, Wish
from .scale import CallInfo, Kind, LogN, Policy, resolve_scale, training_tokens


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
    """One forward pass of the denoiser. `branches` names the equal parts that its batch consists of, in order."""

    step: int
    latent_size: tuple[int, int]
    branches: tuple[str, ...] = ("all",)


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
    ):
        if policy is not None and not callable(policy):
            raise TypeError(f"scale={policy!r}: a policy, called with a CallInfo, is needed; a number is Fixed(number)")
        if isinstance(policy, LogN) and policy.train_tokens == "auto":
            if layers.layers in ("cross", "all"):
                raise ValueError(
                    f"layers={layers.layers!r} with LogN(train_tokens='auto'): the keys of cross-attention are text "
                    "tokens, whose number at training is not known; give LogN(train_tokens=...) or layers='self'"
                )
            if train_size is None:
                raise ValueError(
                    "LogN(train_tokens='auto') needs the training size, which the model does not state: give "
                    "apply(train_size=...) or LogN(train_tokens=...)"
                )
        self.policy = policy
        self.layers = layers
        self.recorders = _recorders(record)
        self.train_size = train_size
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

    @contextmanager
    def layer_call(self, layer: str, kind: Kind, describe: Callable[[], str]) -> Iterator[None]:
        """Torch's attention calls in this block are this layer's. `describe` explains a block without any."""

        def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
            return self.attention(layer, kind, *args, **kwargs)

        with _AttentionCalls(attend) as intercepted:
            yield
        if not intercepted.count:
            raise Unroutable(f"layer {layer!r}", [describe()])

    def attention(
        self,
        layer: str,
        kind: Kind,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """Stands in for torch's scaled_dot_product_attention in `layer`; from `query` on the arguments are its."""
        running = getattr(self._running, "call", None)
        call = running or self._latest
        info = self._describe(layer, kind, query, key, call)
        if (layer, kind) in self.layers:
            chosen = resolve_scale(self.policy, info)
            if isinstance(chosen, torch.Tensor):
                chosen = chosen.to(query.device)
            scale = scale if chosen is None else chosen
        options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        wishes = self._wishes(info, call)
        if not wishes:
            return ops.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, **options)
        if dropout_p > 0.0:
            raise Unroutable(f"layer {layer!r}", [f"dropout_p={dropout_p}: attention is recorded without dropout only"])
        keys = _cover([wish for _, wish in wishes])
        wants_entropy = any(wish == "entropy" for _, wish in wishes)
        result = ops.attention(query, key, value, return_entropy=wants_entropy, map_keys=keys, **options)
        if running is not None:
            used = info.head_dim**-0.5 if scale is None else scale
            for recorder, wish in wishes:
                measured = result.entropy
                if wish != "entropy":
                    measured = result.map[..., wish[0] - keys[0] : wish[1] - keys[0]]
                recorder.record(info, used, measured, running.branches, running.latent_size)
        return result.out

    def _wishes(self, info: CallInfo, call: DenoiserCall | None) -> list[tuple[Recorder, Wish]]:
        """Who wants what of this call."""
        if call is None:  # a layer by itself, before the denoiser was ever called
            return []
        recorders = getattr(self._running, "recorders", None) or self.recorders
        wishes = [(recorder, recorder.wants(info, call.latent_size)) for recorder in recorders]
        return [(recorder, wish) for recorder, wish in wishes if wish is not None]

    def _describe(
        self, layer: str, kind: Kind, query: torch.Tensor, key: torch.Tensor, call: DenoiserCall | None
    ) -> CallInfo:
        seqlen_k = key.shape[-2]
        train_tokens = None
        if kind == "self" and call is not None and self.train_size is not None:
            train_tokens = training_tokens(seqlen_k, call.latent_size, self.train_size)
        return CallInfo(
            layer=layer,
            kind=kind,
            seqlen_q=query.shape[-2],
            seqlen_k=seqlen_k,
            num_heads=query.shape[-3],
            head_dim=query.shape[-1],
            train_tokens=train_tokens,
            text_tokens=seqlen_k if kind == "cross" else 0,
            step=call.step if call is not None else 0,
        )


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


class _AttentionCalls(TorchFunctionMode):
    """Hands torch's attention calls of this thread to `attend` while entered, and counts them."""

    def __init__(self, attend: Callable[..., torch.Tensor]):
        super().__init__()
        self.attend = attend
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        # Torch leaves this mode for the duration of this method, so `attend` may call torch's attention itself.
        if func is F.scaled_dot_product_attention:
            self.count += 1
            return self.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
