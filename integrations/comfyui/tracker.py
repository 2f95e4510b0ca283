"""What is known of an attention call before it is made: the pass of the model it belongs to, its kind, its layer."""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from entropy_attn.recorders.base import Parts
from entropy_attn.routing.calls import DenoiserCall, LayerCall

from .call import AttentionCall
from .families import UNET, Family

KEY = "entropy_attn"
# Names in comfy.patcher_extension.WrappersMP
APPLY_MODEL, OUTER_SAMPLE = "apply_model", "outer_sample"


class UnknownCall(Exception):
    """The kind of an attention call is not known; says why. The call is then left as it is."""


@dataclass
class Pass:
    """One pass of the model: a call of BaseModel.apply_model.

    Attributes:
        latent_size: (rows, columns).
        batch: rows of the latents.
        step: how many other noise levels came before in this sampling.
        sigma: the noise level.
        context: (batch, tokens, width), what the sampler gives as the text; None without one.
        branches: names of the equal parts of the batch, in order.
        references: whether reference latents were given (Flux).
        frames: whether the batch is the frames of a video.
        counts: attention calls so far, by kind.
        seen, reasons: how many calls there were, and why some were not understood.
        done: what was applied in this pass, by its owner.
    """

    latent_size: tuple[int, int]
    batch: int
    step: int
    sigma: float
    context: Tensor | None
    branches: tuple[str, ...]
    references: bool
    frames: bool
    counts: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    reasons: dict[str, None] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    @cached_property
    def parts(self) -> Parts:
        return Parts(self.branches)


@dataclass(frozen=True)
class Signpost:
    """The patch before attn1 or attn2 of a BasicTransformerBlock was called: the next call is this one."""

    layer: str
    kind: str
    keys: int


@dataclass(frozen=True)
class Place:
    """A call that is understood."""

    layer_call: LayerCall
    image_tokens: int | None  # None in a UNet
    reference_tokens: int
    current: Pass

    def denoiser_call(self, train_tokens: int | None) -> DenoiserCall:
        """The pass as entropy_attn describes it.

        train_tokens: image tokens at the training size, for a model whose layers all have the same.
        """
        current = self.current
        return DenoiserCall(
            current.step,
            current.latent_size,
            current.parts,
            self.image_tokens,
            train_tokens,
            self.reference_tokens,
            current.batch,
        )


class Tracker:
    """Follows the passes of one model, and of its clones, so that each attention call can be placed.

    `install` adds what it needs to a ModelPatcher: a wrapper around each sampling and each pass, and for a UNet patches
    before self- and cross-attention that change nothing. Lengths alone would not do: with 77 tokens of text and a level
    of 7 x 11 tokens, self- and cross-attention look the same.
    """

    def __init__(self, family: Family):
        self.family = family
        self._step, self._sigma = -1, math.nan  # of the latest pass
        self._local = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tracker:
        return self  # ModelPatcher.clone copies its options in depth; clones share the tracker

    def install(self, model: Any) -> None:
        """Follow this ModelPatcher and its later clones."""
        model.add_wrapper_with_key(OUTER_SAMPLE, KEY, self.outer_sample)
        model.add_wrapper_with_key(APPLY_MODEL, KEY, self.apply_model)
        if self.family.name == UNET:
            model.set_model_attn1_patch(self.before_attn1)
            model.set_model_attn2_patch(self.before_attn2)

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one sampling: its steps start at 0."""
        self._step, self._sigma = -1, math.nan
        return executor(*args, **kwargs)

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Around one pass of the model."""
        options = {} if transformer_options is None else transformer_options
        outer = getattr(self._local, "current", None)
        self._local.current = self._pass(x, t, c_crossattn, options, kwargs)
        self._local.signpost = None
        try:
            out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
            finish = getattr(options.get("optimized_attention_override"), "finish_pass", None)
            if finish is not None:
                finish(self._local.current)
            return out
        finally:
            self._local.current = outer

    def before_attn1(self, n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> Any:
        """A UNet's block is about to call attn1: self-attention, or in upscalers attention to the text."""
        kind = "self" if context is n or context.shape[-1] == n.shape[-1] else "cross"
        self._local.signpost = Signpost(_layer(extra, "attn1"), kind, context.shape[1])
        return n, context, value

    def before_attn2(self, n: Tensor, context: Tensor | None, value: Tensor | None, extra: dict[str, Any]) -> Any:
        """A UNet's block is about to call attn2: cross-attention, or without a context self-attention."""
        keys = n if context is None else context
        self._local.signpost = Signpost(_layer(extra, "attn2"), "self" if keys is n else "cross", keys.shape[1])
        return n, context, value

    def place(self, call: AttentionCall) -> Place | None:
        """Where this call belongs; None outside of a pass.

        Raises:
            UnknownCall: its kind is not known.
        """
        current: Pass | None = getattr(self._local, "current", None)
        if current is None:
            return None
        current.seen += 1
        signpost, self._local.signpost = self._local.signpost, None
        try:
            if current.frames:
                raise UnknownCall("the batch is the frames of a video")
            if len(call.query) != current.batch:
                raise UnknownCall(
                    f"it has {len(call.query)} rows and the batch {current.batch}, as with tiled attention"
                )
            if self.family.name == UNET:
                return self._in_unet(call, signpost, current)
            return self._in_transformer(call, current)
        except UnknownCall as error:
            current.reasons[str(error)] = None
            raise

    def _pass(self, x: Tensor, t: Tensor, context: Any, options: dict[str, Any], kwargs: dict[str, Any]) -> Pass:
        rows, sigma = int(x.shape[0]), float(t.flatten()[0])
        if sigma != self._sigma:
            self._step, self._sigma = self._step + 1, sigma
        return Pass(
            latent_size=(int(x.shape[-2]), int(x.shape[-1])),
            batch=rows,
            step=self._step,
            sigma=sigma,
            context=context,
            branches=_branches(options, rows),
            references=bool(kwargs.get("ref_latents")),
            frames="num_video_frames" in kwargs or x.ndim != 4,
        )

    def _in_unet(self, call: AttentionCall, signpost: Signpost | None, current: Pass) -> Place:
        if signpost is None:
            raise UnknownCall("it comes from no transformer block, or from one whose attention another node replaced")
        if call.seqlen_k != signpost.keys:
            raise UnknownCall(
                f"{signpost.layer} has {call.seqlen_k} keys, not {signpost.keys}: another node changed them"
            )
        if signpost.kind == "self":
            height, width = call.options["transformer_options"]["activations_shape"][-2:]
            if call.seqlen_k != height * width:
                raise UnknownCall(f"{signpost.layer} has {call.seqlen_k} keys, not the {height} x {width} of its level")
            return Place(LayerCall(signpost.layer, "self"), None, 0, current)
        return Place(LayerCall(signpost.layer, "cross", text="all"), None, 0, current)

    def _in_transformer(self, call: AttentionCall, current: Pass) -> Place:
        image = self.family.image_tokens(current.latent_size)
        assert image is not None
        text = self.family.registers + (0 if current.context is None else current.context.shape[1])
        queries, keys = call.seqlen_q, call.seqlen_k
        if queries == keys == image and text:
            kind, reference = "self", 0
        elif queries == keys and (keys == text + image or (current.references and keys > text + image)):
            kind, reference = "joint", keys - text - image
        else:
            raise UnknownCall(f"it has {queries} queries and {keys} keys, with {image} image and {text} text tokens")
        layer = f"{kind}.{current.counts[kind]}"
        current.counts[kind] += 1
        layer_call = LayerCall(layer, "joint", text="first") if kind == "joint" else LayerCall(layer, "self")
        return Place(layer_call, image + reference, reference, current)


def _layer(extra: dict[str, Any], name: str) -> str:
    part, index = extra["block"]
    block = "middle_block" if part == "middle" else f"{part}_blocks.{index}"
    return f"{block}.transformer_blocks.{extra.get('block_index', 0)}.{name}"


def _branches(options: dict[str, Any], rows: int) -> tuple[str, ...]:
    """The parts of the batch: "cond", "uncond", and numbered where there are several of a kind."""
    parts = options.get("cond_or_uncond")
    if not parts or rows % len(parts):
        return ("all",)
    counts: Counter[str] = Counter()
    names = []
    for part in parts:
        name = "uncond" if part else "cond"
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} {counts[name]}")
    return tuple(names)
