"""What happens to a routed attention call: the scale policy, the attention itself, the recorders.

Nothing here knows a model library. An integration says which layer calls, and when the denoiser runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from entropy_attn.errors import Unroutable
from entropy_attn.ops import api as ops
from entropy_attn.ops.response import response_and_variance
from entropy_attn.recorders.base import Recorder, unknown_rows
from entropy_attn.routing.calls import (
    AttentionArguments,
    DenoiserCall,
    LayerCall,
    LayerSelection,
    Rows,
    describe,
    rows_of,
)
from entropy_attn.routing.key_arguments import KeyArguments, key_arguments
from entropy_attn.routing.policy_recorder import policy_recorders
from entropy_attn.routing.recordings import Recordings
from entropy_attn.scale import (
    CallInfo,
    KeyGroups,
    Policy,
    TokenRatio,
    needs_train_tokens,
    resolve_scale,
)
from entropy_attn.scale.call import policies_in
from entropy_attn.validation import require_one_of, require_policy


class Router:
    """The attention of one handle: its policy, its layers, its recorders, and the denoiser calls in progress.

    A denoiser call belongs to the thread that makes it. A layer that is called outside of one, as gradient
    checkpointing does when it recomputes, uses the latest denoiser call: it computes the same but is not recorded.
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
        """See `apply`; train_size: (rows, columns) in latent cells.

        halvings: for each layer of a UNet, how often the latent has been halved where the layer attends to the image.
        """
        _check_policy(policy, layers, train_size)
        self.policy = policy
        self.layers = layers
        followers = policy_recorders(policy, layers)
        self.recorders = (*_recorders(record), *followers)
        self.train_size = train_size
        require_one_of("rows", rows, ("all", "image"))
        self.rows = rows
        self.needs_timestep = any(getattr(each, "needs_timestep", False) for each in policies_in(policy))
        self.gives_key_groups = any(getattr(each, "gives_key_groups", False) for each in policies_in(policy))
        self._knows_branches = any(each.branches is None for each in followers)  # `apply` checks the pipeline for them
        self._halvings = halvings or {}
        self._running = threading.local()
        self._latest: DenoiserCall | None = None

    @contextmanager
    def denoiser_call(self, call: DenoiserCall) -> Iterator[None]:
        """The denoiser runs in this thread while the block lasts."""
        outer = getattr(self._running, "call", None)
        self._running.call = self._latest = call
        try:
            yield
        finally:
            self._running.call = outer

    @contextmanager
    def recorded_by(self, recorder: Recorder) -> Iterator[None]:
        """Only this recorder sees the calls of this thread while the block lasts."""
        outer = getattr(self._running, "recorders", None)
        self._running.recorders = (recorder,)
        try:
            yield
        finally:
            self._running.recorders = outer

    @property
    def watching(self) -> bool:
        """Whether calls of this thread are recorded now."""
        return bool(self._recorders_now())

    def attention(self, layer_call: LayerCall, arguments: AttentionArguments, *, record: bool = True) -> torch.Tensor:
        """Attention in place of torch's scaled_dot_product_attention; record=False hides the call from recorders."""
        query, key = arguments.query, arguments.key
        info = self._describe(layer_call, query.shape[-2], key.shape[-2], query.shape[-3], query.shape[-1])
        chosen = resolve_scale(self.policy, info) if self.layers.takes(info) else None
        recordings = self._recordings(layer_call, info) if record else None
        if chosen is None:
            return _attend(arguments, recordings)
        groups = None
        if isinstance(chosen, KeyGroups):
            groups = self._placed(chosen, layer_call, arguments)
            chosen = chosen.scale
        if isinstance(chosen, torch.Tensor):
            chosen = chosen.to(query.device, non_blocking=True)  # or the host would wait for the device
        scaled = arguments if chosen is None else arguments._replace(scale=chosen)
        image_rows, text_rows = rows_of(layer_call, info) if self.rows == "image" else (slice(None), None)
        if text_rows is None:
            return _attend(scaled, recordings, groups)
        if groups is not None:
            reason = "rows='image': KeyGroups say themselves which queries they are for; give rows='all'"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        if (layer_call.ragged and arguments.attn_mask is not None) or arguments.is_causal:
            reason = "is causal" if arguments.is_causal else "has images that begin at different positions"
            raise Unroutable(f"layer {layer_call.layer!r}", [f"rows='image': it {reason}; give rows='all'"])
        image = _attend(scaled.of_rows(image_rows), recordings)
        text = _attend(arguments.of_rows(text_rows), None)
        return torch.cat([text, image] if layer_call.text == "first" else [image, text], dim=-2)

    def scale_of(
        self, layer_call: LayerCall, seqlen_q: int, seqlen_k: int, num_heads: int, head_dim: int
    ) -> float | torch.Tensor | None:
        """The policy's scale for an attention call of this thread; None keeps the model's default scale."""
        info = self._describe(layer_call, seqlen_q, seqlen_k, num_heads, head_dim)
        chosen = resolve_scale(self.policy, info) if self.layers.takes(info) else None
        if isinstance(chosen, KeyGroups):
            reason = (
                f"scale={self.policy!r}: KeyGroups are no part of a graph of torch.compile; give the policy an "
                "attribute gives_key_groups = True, which keeps its calls outside"
            )
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        return chosen

    def _placed(self, groups: KeyGroups, layer_call: LayerCall, arguments: AttentionArguments) -> KeyArguments | None:
        """The key groups for this call; None if no sample of it is of their branch."""
        if layer_call.ragged and arguments.attn_mask is not None:
            reason = f"{type(self.policy).__name__} gives KeyGroups: its images begin at different positions"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        if arguments.dropout_p > 0.0:
            reason = f"dropout_p={arguments.dropout_p}: KeyGroups are served without dropout only"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        samples = None
        if groups.branch is not None:
            samples = self._samples_of(groups.branch, layer_call, arguments)
        return key_arguments(groups, arguments.query, arguments.key, samples)

    def _samples_of(self, branch: str, layer_call: LayerCall, arguments: AttentionArguments) -> list[int]:
        """The rows of a call that are of a branch of guidance."""
        batch = len(arguments.query)
        call = getattr(self._running, "call", None) or self._latest
        if call is None or not self._knows_branches:
            reason = f"KeyGroups(branch={branch!r}): a policy of them has follows = True and needs_branches = True"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        parts = call.parts
        if parts.names in (("all",), ()):
            return list(range(batch))
        if layer_call.sample is not None:
            here = parts.name_of(layer_call.sample, layer_call.samples) == branch
            return list(range(batch)) if here else []
        if (unknown := unknown_rows(arguments.query, call.batch, parts.names)) is not None:
            raise Unroutable(f"layer {layer_call.layer!r}", [unknown])
        return list(parts.rows_of(branch, batch)) if branch in parts.names else []

    def _describe(self, layer_call: LayerCall, seqlen_q: int, seqlen_k: int, num_heads: int, head_dim: int) -> CallInfo:
        call = getattr(self._running, "call", None) or self._latest
        return describe(layer_call, seqlen_q, seqlen_k, num_heads, head_dim, call, self.train_size, self._halvings)

    def _recordings(self, layer_call: LayerCall, info: CallInfo) -> Recordings | None:
        """What the recorders request of this call; None if there is nothing to record."""
        recorders = self._recorders_now()
        if not recorders:
            return None
        running = getattr(self._running, "call", None)
        call = running or self._latest
        if call is None or not call.parts.names:  # a layer by itself, or a call that is no part of the generation
            return None
        requests = []
        for recorder in recorders:
            recorder.observe(info, call.latent_size)
            if (request := recorder.wants(info, call.latent_size)) is not None:
                requests.append((recorder, request))
        return Recordings(layer_call, info, call, running is not None, tuple(requests)) if requests else None

    def _recorders_now(self) -> tuple[Recorder, ...]:
        return getattr(self._running, "recorders", None) or self.recorders


def _attend(
    arguments: AttentionArguments, recordings: Recordings | None, groups: KeyArguments | None = None
) -> torch.Tensor:
    """Attention, and what is recorded of it."""
    options = {} if groups is None else groups._asdict()
    if recordings is None:
        if groups is None:
            return ops.scaled_dot_product_attention(*arguments)
        return ops.attention(
            arguments.query, arguments.key, arguments.value, attn_mask=arguments.attn_mask,
            is_causal=arguments.is_causal, scale=arguments.scale, enable_gqa=arguments.enable_gqa, **options,
        ).out  # fmt: skip
    recordings.check(arguments)
    if groups is not None and recordings.response:
        reason = "ResponseRecorder measures calls without KeyGroups; use an EntropyRecorder"
        raise Unroutable(f"layer {recordings.info.layer!r}", [reason])
    result = ops.attention(
        arguments.query,
        arguments.key,
        arguments.value,
        attn_mask=arguments.attn_mask,
        is_causal=arguments.is_causal,
        scale=arguments.scale,
        enable_gqa=arguments.enable_gqa,
        return_entropy=recordings.entropy,
        map_keys=recordings.map_keys,
        statistics=("variance",) if recordings.variance else (),
        **options,
    )
    response = None
    if recordings.response:
        response = response_and_variance(
            arguments.query,
            arguments.key,
            arguments.value,
            attn_mask=arguments.attn_mask,
            is_causal=arguments.is_causal,
            scale=arguments.scale,
            enable_gqa=arguments.enable_gqa,
        )
    recordings.give(result, response, arguments)
    return result.out


def _check_policy(policy: Policy | None, layers: LayerSelection, train_size: tuple[int, int] | None) -> None:
    if policy is not None:
        require_policy("scale", policy)
    if not needs_train_tokens(policy):
        return
    # A policy made of others may have one for cross-attention that needs no training size.
    if layers.layers in ("cross", "all") and isinstance(policy, TokenRatio):
        name = type(policy).__name__
        raise ValueError(
            f"layers={layers.layers!r} with {name}(train_tokens='auto'): the keys of cross-attention are text tokens, "
            f"whose number in training is not known; give {name}(train_tokens=...) or layers='self'"
        )
    if train_size is None:
        raise ValueError(
            f"scale={policy!r} needs the training size, which the model does not state: give apply(train_size=...), or "
            "train_tokens=... instead of 'auto'"
        )


def _recorders(record: Recorder | Sequence[Recorder] | None) -> tuple[Recorder, ...]:
    if record is None:
        return ()
    recorders = (record,) if isinstance(record, Recorder) else record
    if not isinstance(recorders, (tuple, list)) or not recorders or not all(isinstance(r, Recorder) for r in recorders):
        raise TypeError(f"record: expected an EntropyRecorder, a MapRecorder, a list of them, or None, got {record!r}")
    if len({id(recorder) for recorder in recorders}) < len(recorders):
        raise ValueError(f"record: expected each recorder once, got {record!r}")
    return tuple(recorders)
