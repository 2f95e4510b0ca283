"""What happens to a routed attention call: the scale policy, the attention itself, the recorders, the mix.

Nothing here knows a model library. An integration says which layer calls, and when the denoiser runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from entropy_attn.errors import Unroutable
from entropy_attn.mix import Mix
from entropy_attn.ops import api as ops
from entropy_attn.ops.key_groups import named_tensors
from entropy_attn.ops.response import response_and_variance
from entropy_attn.recorders.base import Parts, Probabilities, Recorder, unknown_rows
from entropy_attn.routing.calls import (
    AttentionArguments,
    Blocks,
    DenoiserCall,
    LayerCall,
    LayerSelection,
    Rows,
    TwoTexts,
    describe,
    rows_of,
    text_keys_of,
)
from entropy_attn.routing.key_arguments import KeyArguments, key_arguments
from entropy_attn.routing.mixing import Mixing
from entropy_attn.routing.policy_recorder import mix_recorders, policy_recorders
from entropy_attn.routing.recordings import Recordings, Wanted
from entropy_attn.routing.shards import Shards
from entropy_attn.routing.text_rows import TextRows
from entropy_attn.scale import CallInfo, KeyGroups, Policy, Scale, TokenRatio, needs_train_tokens, resolve_scale
from entropy_attn.scale.call import any_policy
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
        blocks: Blocks | None = None,
        mix: Mix | None = None,
    ):
        """See `apply`; train_size: (rows, columns) in latent cells.

        halvings: for each layer of a UNet, how often the latent has been halved where the layer attends to the image.
        blocks: the block of each layer, for `CallInfo`.
        mix: what is done to the answers of calls; None for nothing.
        """
        _check_policy(policy, layers, train_size)
        self.policy = policy
        self.layers = layers
        self.mixing = None if mix is None else Mixing(mix)
        followers = (*policy_recorders(policy, layers), *mix_recorders(mix, layers))
        self.recorders = (*_recorders(record), *followers)
        self.train_size = train_size
        require_one_of("rows", rows, ("all", "image"))
        self.rows = rows
        self.needs_timestep, self.needs_sigma, self.needs_num_steps = (
            any_policy(policy, name) or getattr(mix, name, False)
            for name in ("needs_timestep", "needs_sigma", "needs_num_steps")
        )
        # A graph of torch.compile that asks for a scale alone gets one number for each head.
        more = any_policy(policy, "gives_key_groups") or any_policy(policy, "gives_sample_scales")
        self.needs_whole_calls = more or mix is not None
        self.denoiser_calls = 0  # how many there were
        self._knows_branches = any(each.branches is None for each in followers)  # `apply` checks the pipeline for them
        self._halvings, self.blocks = halvings or {}, blocks
        self._running = threading.local()
        self._latest: DenoiserCall | None = None

    @contextmanager
    def denoiser_call(self, call: DenoiserCall) -> Iterator[None]:
        """The denoiser runs in this thread while the block lasts."""
        outer = getattr(self._running, "call", None)
        self._running.call = self._latest = call
        self.denoiser_calls += 1
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
    def knows_branches(self) -> bool:
        """Whether the parts of each denoiser call are asked for."""
        return self._knows_branches

    @property
    def watching(self) -> bool:
        """Whether calls of this thread are recorded now."""
        return bool(self._recorders_now())

    def attention(
        self,
        layer_call: LayerCall,
        arguments: AttentionArguments,
        *,
        record: bool = True,
        spread_keys: bool = False,
        traced: bool = False,
    ) -> torch.Tensor:
        """Attention in place of torch's scaled_dot_product_attention.

        record: False hides the call from recorders.
        spread_keys: the keys are one device's part of those that the queries attend to.
        traced: a graph of torch.compile makes the call, which knows of no tensors of the policy.
        """
        call = self._denoiser_call()
        texts = None if call is None else call.texts
        if call is not None and isinstance(texts, TextRows):
            first, of_rows = texts.divide(layer_call, arguments, call.batch, call.image_tokens)
            out, scale = self._answer(layer_call, first, call, of_rows, record, spread_keys, traced)
            scale = scale if self.rows == "all" else arguments.scale
            return texts.behind(out, layer_call, of_rows, scale, call.image_tokens)
        of_own_text = None
        if isinstance(texts, TwoTexts) and layer_call.kind == "cross" and layer_call.text == "all":
            arguments, of_own_text = texts.split(layer_call, arguments)
        return self._answer(layer_call, arguments, call, of_own_text, record, spread_keys, traced)[0]

    def _answer(
        self,
        layer_call: LayerCall,
        arguments: AttentionArguments,
        call: DenoiserCall | None,
        of_own_text: AttentionArguments | None,
        record: bool,
        spread_keys: bool,
        traced: bool,
    ) -> tuple[torch.Tensor, float | torch.Tensor | None]:
        """What a layer gets of a call with one text, and the scale of the first answer.

        of_own_text: the same call with the text of the mix.
        """
        query, key = arguments.query, arguments.key
        seqlen_q, seqlen_k = query.shape[-2], key.shape[-2]
        shards, of_keys = None if call is None else call.shards, None
        if shards is not None or spread_keys:
            shards = _checked(shards, layer_call, arguments, spread_keys)
        if shards is not None:  # policies and recorders are told of all tokens
            seqlen_q = shards.total(seqlen_q)
            if spread_keys:
                of_keys, seqlen_k = shards, shards.total(seqlen_k)
        info = describe(
            layer_call,
            seqlen_q,
            seqlen_k,
            query.shape[-3],
            query.shape[-1],
            call,
            self.train_size,
            self._halvings,
            self.blocks,
            query.shape[0] if query.dim() == 4 else None,
            self._branches(layer_call, query, call) if self._knows_branches else None,
        )
        chosen = resolve_scale(self.policy, info) if self.layers.takes(info) else None
        if isinstance(chosen, KeyGroups) and layer_call.kind == "joint" and of_own_text is not None:
            reason = "KeyGroups are for the tokens of one text; give another policy, or a mix without a text of its own"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        if traced:
            self.refuse_gradients(chosen)
        recordings = self._recordings(layer_call, info, shards) if record else None
        other = None if self.mixing is None else self.mixing.other(info)
        if other is None:
            return self._first_answer(layer_call, arguments, chosen, info, recordings, shards, of_keys)
        mixing = cast(Mixing, self.mixing)
        groups, spread = isinstance(chosen, KeyGroups), shards is not None
        mixing.check(layer_call, arguments, groups=groups, shards=spread, other=other, of_own_text=of_own_text)
        out, scale = self._first_answer(layer_call, arguments, chosen, info, recordings, shards, of_keys)
        parts = Parts(("all",)) if call is None else call.parts
        scaled = arguments._replace(scale=scale)
        return mixing.mixed(out, other, layer_call, scaled, info, parts, of_own_text), scale

    def _first_answer(
        self,
        layer_call: LayerCall,
        arguments: AttentionArguments,
        chosen: Scale,
        info: CallInfo,
        recordings: Recordings | None,
        shards: Shards | None,
        of_keys: Shards | None,
    ) -> tuple[torch.Tensor, float | torch.Tensor | None]:
        """The attention that the policy chose, recorded, and its scale."""
        if chosen is None:
            return _attend(arguments, recordings, of_keys), arguments.scale
        groups = None
        if isinstance(chosen, KeyGroups):
            groups = self._placed(chosen, layer_call, arguments, shards, info.branches)
            chosen = chosen.scale
        if isinstance(chosen, torch.Tensor):
            chosen = chosen.to(arguments.query.device, non_blocking=True)  # or the host would wait for the device
        scaled = arguments if chosen is None else arguments._replace(scale=chosen)
        image_rows, text_rows = rows_of(layer_call, info, shards) if self.rows == "image" else (slice(None), None)
        if text_rows is None:
            return _attend(scaled, recordings, of_keys, groups), scaled.scale
        if groups is not None:
            reason = "rows='image': KeyGroups say themselves which queries they are for; give rows='all'"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        if (layer_call.ragged and arguments.attn_mask is not None) or arguments.is_causal:
            reason = "is causal" if arguments.is_causal else "has images that begin at different positions"
            raise Unroutable(f"layer {layer_call.layer!r}", [f"rows='image': it {reason}; give rows='all'"])
        of_image, of_text = recordings, None
        if recordings is not None and recordings.blocks:
            of_image, of_text = recordings.of_queries("image"), recordings.of_queries("text")
        image = _attend(scaled.of_rows(image_rows), of_image, of_keys)
        text = _attend(arguments.of_rows(text_rows), of_text, of_keys)
        out = torch.cat([text, image] if layer_call.text == "first" else [image, text], dim=-2)
        return out, scaled.scale

    def scale_of(
        self, layer_call: LayerCall, seqlen_q: int, seqlen_k: int, num_heads: int, head_dim: int
    ) -> float | torch.Tensor | None:
        """The policy's scale for an attention call of this thread; None keeps the model's default scale."""
        call = self._denoiser_call()
        size, halvings, blocks = self.train_size, self._halvings, self.blocks
        info = describe(layer_call, seqlen_q, seqlen_k, num_heads, head_dim, call, size, halvings, blocks)
        chosen = resolve_scale(self.policy, info) if self.layers.takes(info) else None
        if isinstance(chosen, KeyGroups):
            reason = (
                f"scale={self.policy!r}: KeyGroups are no part of a graph of torch.compile that is made for scales "
                "alone; give the policy an attribute gives_key_groups = True"
            )
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        return chosen

    def refuse_gradients(self, chosen: Scale) -> None:
        """Raise ValueError for what a policy returned in a graph that would not differentiate it."""
        given: list[Any] = [chosen]
        if isinstance(chosen, KeyGroups):
            tables = (("key_scale", chosen.key_scale), ("key_bias", chosen.key_bias))
            given = [chosen.scale, *(t for name, table in tables for t in named_tensors(name, table).values())]
        if any(isinstance(each, torch.Tensor) and each.requires_grad for each in given):
            raise ValueError(
                f"scale policy {self.policy!r} returned a tensor with a gradient, which torch.compile would lose"
            )

    def _placed(
        self,
        groups: KeyGroups,
        layer_call: LayerCall,
        arguments: AttentionArguments,
        shards: Shards | None,
        branches: tuple[str, ...] | None,
    ) -> KeyArguments | None:
        """The key groups for this call; None if no sample of it is of their branch."""
        if shards is not None:  # groups count the tokens of all devices, of which a call has its own
            reason = (
                f"{type(self.policy).__name__} gives KeyGroups: its tokens are spread over devices (context parallel); "
                "give a policy of one factor per head, or run the model on one device"
            )
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        if layer_call.ragged and arguments.attn_mask is not None:
            reason = f"{type(self.policy).__name__} gives KeyGroups: its images begin at different positions"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        if arguments.dropout_p > 0.0:
            reason = f"dropout_p={arguments.dropout_p}: KeyGroups are served without dropout only"
            raise Unroutable(f"layer {layer_call.layer!r}", [reason])
        samples = None
        if groups.branch is not None:
            if branches is None:
                reason = f"KeyGroups(branch={groups.branch!r}): a policy of them has needs_branches = True"
                raise Unroutable(f"layer {layer_call.layer!r}", [reason])
            samples = [sample for sample, name in enumerate(branches) if name in (groups.branch, "all")]
        return key_arguments(groups, arguments.query, arguments.key, samples)

    def _branches(
        self, layer_call: LayerCall, query: torch.Tensor, call: DenoiserCall | None
    ) -> tuple[str, ...] | None:
        """The branch of each sample of a call; None for a layer that is called outside of a denoiser.

        Raises:
            Unroutable: its rows are not those of the denoiser's batch.
        """
        if call is None:
            return None
        batch, parts = query.shape[0], call.parts
        if layer_call.sample is not None and parts.names:
            return (parts.name_of(layer_call.sample, layer_call.samples),) * batch
        unknown = unknown_rows(query, call.batch, parts.names)
        if unknown is None and parts.names and batch % len(parts.names):
            unknown = f"its attention call has {batch} rows, which are not {len(parts.names)} equal parts {parts.names}"
        if unknown is not None:
            raise Unroutable(f"layer {layer_call.layer!r}", [unknown])
        return parts.names_of(batch)

    def _denoiser_call(self) -> DenoiserCall | None:
        return getattr(self._running, "call", None) or self._latest

    def _recordings(self, layer_call: LayerCall, info: CallInfo, shards: Shards | None) -> Recordings | None:
        """What the recorders request of this call; None if there is nothing to record."""
        recorders = self._recorders_now()
        if not recorders:
            return None
        running = getattr(self._running, "call", None)
        call = running or self._latest
        if call is None or not call.parts.names:  # a layer by itself, or a call that is no part of the generation
            return None
        requests: list[tuple[Recorder, Wanted]] = []
        blocks: list[tuple[Recorder, Probabilities]] = []
        for recorder in recorders:
            recorder.observe(info, call.latent_size)
            request = recorder.wants(info, call.latent_size)
            if isinstance(request, Probabilities):
                blocks.append((recorder, request))
            elif request is not None:
                requests.append((recorder, request))
        if not requests and not blocks:
            return None
        return Recordings(layer_call, info, call, running is not None, tuple(requests), shards, tuple(blocks))

    def _recorders_now(self) -> tuple[Recorder, ...]:
        return getattr(self._running, "recorders", None) or self.recorders


def _checked(
    shards: Shards | None, layer_call: LayerCall, arguments: AttentionArguments, spread_keys: bool
) -> Shards | None:
    """How the queries of a call are spread over devices; None for text of which every device has all.

    Raises:
        Unroutable: it would not be computed as on one device.
    """
    if shards is None:
        reason = "its tokens are spread over devices, and it is called outside of its denoiser: call the denoiser"
    elif spread_keys:
        shards.check(layer_call, arguments)
        return shards
    elif layer_call.kind == "cross":  # to a text of which every device has all
        return shards
    elif layer_call.text == "all":  # such a text, to itself
        return None
    else:
        reason = (
            "its processor attends to the tokens of one device alone, though they are spread over several; set one of "
            "diffusers' own before enable_parallelism"
        )
    raise Unroutable(f"layer {layer_call.layer!r}", [reason])


def _attend(
    arguments: AttentionArguments,
    recordings: Recordings | None,
    shards: Shards | None,
    groups: KeyArguments | None = None,
) -> torch.Tensor:
    """Attention, and what is recorded of it. shards: how the keys are spread over devices; None with groups."""
    tensors = arguments.query, arguments.key, arguments.value
    options: dict[str, Any] = {
        "attn_mask": arguments.attn_mask,
        "is_causal": arguments.is_causal,
        "scale": arguments.scale,
        "enable_gqa": arguments.enable_gqa,
    }
    with_groups = options if groups is None else options | groups._asdict()
    if recordings is None:
        if groups is not None:
            return ops.attention(*tensors, **with_groups).out
        return ops.scaled_dot_product_attention(*arguments) if shards is None else shards.attention(arguments).out
    recordings.check(arguments)
    response = None
    if shards is not None:
        recordings.check_spread()
        text, text_range = None, recordings.text_range
        if text_range is not None:
            text = text_keys_of(recordings.layer_call, recordings.info, arguments.key.shape[-2], shards)
        result = shards.attention(arguments, return_entropy=recordings.entropy, text=text, text_range=text_range)
        if recordings.response:
            response = shards.response(arguments)
    else:
        if groups is not None and recordings.response:
            reason = "ResponseRecorder measures calls without KeyGroups; use an EntropyRecorder"
            raise Unroutable(f"layer {recordings.info.layer!r}", [reason])
        result = ops.attention(
            *tensors,
            return_lse=recordings.lse,
            return_entropy=recordings.entropy,
            map_keys=recordings.map_keys,
            statistics=("variance",) if recordings.variance else (),
            **with_groups,
        )
        if recordings.response:
            response = response_and_variance(*tensors, **options)
    recordings.give(result, response, arguments, groups)
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
        raise TypeError(f"record: expected a recorder, such as EntropyRecorder(), or a list, or None, got {record!r}")
    if len({id(recorder) for recorder in recorders}) < len(recorders):
        raise ValueError(f"record: expected each recorder once, got {record!r}")
    return tuple(recorders)
