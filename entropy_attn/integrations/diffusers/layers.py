"""The attention layers of diffusers' models: what their attention calls attend to, and which cannot be routed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.models import LayerRule
from entropy_attn.integrations.diffusers.private import (
    TORCH_BACKENDS,
    Attention,
    AttentionLayer,
    backend_of,
    other_processors,
)
from entropy_attn.integrations.diffusers.processors import calling, has_copy
from entropy_attn.routing.calls import IMAGE_PROMPT, AttentionArguments, LayerCall
from entropy_attn.routing.intercept import AttentionCalls
from entropy_attn.routing.router import Router
from entropy_attn.scale import Kind

_REMEDY = (
    "set one that does, with set_attn_processor(AttnProcessor2_0()) of the model, AttnProcessor2_0 from "
    "diffusers.models.attention_processor (set_default_attn_processor() sets AttnProcessor, which does not)"
)


class _Attend:
    """Takes the attention calls of one call of a layer, and counts them.

    calls: the call with an index; None for one call too many.
    watching: whether they are recorded.
    text_keys: those of the layer's text, for a processor that may attend to other texts too; see `text_keys_of`.
    traced: see `Router.attention`.
    """

    __slots__ = ("calls", "count", "module", "recorded", "router", "text_keys", "traced", "watching")

    def __init__(
        self,
        router: Router,
        module: AttentionLayer,
        calls: Callable[[int], LayerCall | None],
        watching: bool,
        text_keys: torch.Tensor | None,
        traced: bool = False,
    ):
        self.router = router
        self.watching = watching
        self.module = module
        self.calls = calls
        self.text_keys = text_keys
        self.traced = traced
        self.count = self.recorded = 0

    def __call__(self, *args: Any, spread_keys: bool = False, **kwargs: Any) -> torch.Tensor:
        """spread_keys: see `Router.attention`; the other arguments are torch's."""
        arguments = AttentionArguments(*args, **kwargs)
        call = self.calls(self.count)
        self.count += 1
        options = {"spread_keys": spread_keys, "traced": self.traced}
        if not self.watching:
            return self.router.attention(call or self.first, arguments, record=False, **options)
        if self.text_keys is not None:
            key = arguments.key
            if key.shape != self.text_keys.shape or not torch.allclose(key, self.text_keys, rtol=1e-2, atol=1e-3):
                return self.router.attention(self.first, arguments, record=False, **options)
            call = self.first
            if self.recorded:
                raise Unroutable(f"layer {call.layer!r}", [self.several()])
        if call is None:
            raise Unroutable(f"layer {self.first.layer!r}", [self.several()])
        self.recorded += 1
        return self.router.attention(call, arguments, **options)

    @property
    def first(self) -> LayerCall:
        return cast(LayerCall, self.calls(0))  # a layer makes one call at least

    def several(self) -> str:
        return (
            f"its processor, {type(self.module.processor).__name__}, makes several attention calls, and which of them "
            "to record is not known; record with diffusers' processors, or apply without record"
        )

    def check_recorded(self, name: str) -> None:
        """One of its calls attended to the layer's text, whose keys are known."""
        if self.count and not self.recorded:
            processor = type(self.module.processor).__name__
            reason = (
                f"none of the attention calls of its processor, {processor}, has the keys of the text that the layer "
                "receives; record with diffusers' processors, or apply without record"
            )
            raise Unroutable(f"layer {name!r}", [reason])


def run_layer(
    router: Router,
    name: str,
    module: AttentionLayer,
    rule: LayerRule,
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """Call a layer; the router takes its attention calls."""
    watching = router.watching
    text_keys = text_keys_of(module, rule, *args, **kwargs) if watching else None
    kind, text = kind_by_context(module, *args, **kwargs) if rule.kind == "call" else kind_of(rule)
    samples = len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]) if rule.per_sample else 0
    attend = _Attend(router, module, _calls(name, module, rule, kind, text, samples), watching, text_keys)
    copied = has_copy(module)
    if copied:
        outer = calling.layer, calling.attend
        calling.layer, calling.attend = module, attend
        try:
            result = call(*args, **kwargs)
        finally:
            calling.layer, calling.attend = outer
    else:
        with AttentionCalls(attend):
            result = call(*args, **kwargs)
    # A copied processor does call attention: without a call, a cache answered for the layer at this step.
    if not attend.count and not copied:
        raise Unroutable(f"layer {name!r}", [_explain(module)])
    if text_keys is not None:
        attend.check_recorded(name)
    return result


def text_keys_of(
    module: AttentionLayer,
    rule: LayerRule,
    hidden_states: Any = None,
    encoder_hidden_states: Any = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The keys (batch, heads, tokens, head dim) of the text that a cross-attention layer receives.

    None for processors of diffusers, which attend to what their layer receives, and for layers that make their keys in
    other ways.
    """
    if of_diffusers(module.processor) or not isinstance(module, Attention):
        return None
    kind = kind_by_context(module, hidden_states, encoder_hidden_states)[0] if rule.kind == "call" else rule.kind
    if kind != "cross" or not isinstance(encoder_hidden_states, torch.Tensor):
        return None
    if module.fused_projections or module.to_k is None:
        return None
    with torch.no_grad():
        states = (
            module.norm_encoder_hidden_states(encoder_hidden_states) if module.norm_cross else encoder_hidden_states
        )
        keys = module.to_k(states).unflatten(-1, (-1, module.inner_dim // module.heads)).transpose(1, 2)
        return keys if module.norm_k is None else module.norm_k(keys)


def of_diffusers(processor: Any) -> bool:
    """Whether a processor, or the one that it is a copy of, comes with diffusers."""
    return type(processor).__module__.startswith("diffusers.")


def _torch_backend(module: AttentionLayer) -> bool:
    """Whether attention that goes through the dispatcher ends in torch's scaled_dot_product_attention."""
    backend = backend_of(module.processor)
    return backend is None or backend in TORCH_BACKENDS


def refusal_of(module: AttentionLayer) -> str | None:
    """Why this layer as it is set up cannot be routed, or None where it can."""
    return _explain(module) if type(module.processor) in other_processors() or not _torch_backend(module) else None


def _explain(module: AttentionLayer) -> str:
    if not _torch_backend(module):
        name = getattr(backend_of(module.processor), "value", None)
        return (
            f"its attention backend, {name!r}, makes no scaled_dot_product_attention call; set 'native', with "
            "set_attention_backend('native') of the model"
        )
    return f"its processor, {type(module.processor).__name__}, makes no scaled_dot_product_attention call; {_REMEDY}"


def attend_of(
    router: Router,
    name: str,
    module: AttentionLayer,
    rule: LayerRule,
    of_call: tuple[Kind, str | None] | None,
    samples: int,
    index: int,
    watching: bool,
) -> Callable[..., torch.Tensor]:
    """What takes the index-th attention call of a traced layer; of_call: None where the rule states the kind."""
    kind, text = kind_of(rule) if of_call is None else of_call
    attend = _Attend(router, module, _calls(name, module, rule, kind, text, samples), watching, None, traced=True)
    attend.count = index
    return attend


def _calls(
    name: str, module: AttentionLayer, rule: LayerRule, kind: Kind, text: str | None, samples: int
) -> Callable[[int], LayerCall | None]:
    """What the attention calls within one call of a layer attend to, by their index; None for one too many."""
    if rule.per_sample:
        return lambda index: LayerCall(name, kind, cast(Any, text), sample=index, samples=samples)
    text_call = _text_call(module, rule)
    if text_call is None:
        only = _layer_call(name, kind, text, rule.ragged)
        return lambda index: None if index else only
    return lambda index: _text_or_image_prompt(name, rule, kind, text, index == text_call)


@functools.lru_cache(maxsize=4096)
def _layer_call(name: str, kind: Kind, text: Any, ragged: bool) -> LayerCall:
    return LayerCall(name, kind, text, ragged=ragged)


def layer_call_of(
    name: str, module: AttentionLayer, rule: LayerRule, kind: Kind, text: str | None, index: int
) -> LayerCall:
    """The index-th attention call of a layer."""
    return _text_or_image_prompt(name, rule, kind, text, _text_call(module, rule) in (None, index))


def _text_or_image_prompt(name: str, rule: LayerRule, kind: Kind, text: str | None, to_text: bool) -> LayerCall:
    """A call of a layer that attends to the text, and in another call to an image prompt."""
    if to_text:
        return _layer_call(name, kind, text, rule.ragged)
    return _layer_call(f"{name}{IMAGE_PROMPT}", "cross", None, False)


def kind_of(rule: LayerRule) -> tuple[Kind, str | None]:
    """Kind of a layer's calls, and the position of the text in them."""
    if rule.kind == "text":
        return "self", "all"
    return cast(Kind, rule.kind), "all" if rule.kind == "cross" else rule.text


def _text_call(module: AttentionLayer, rule: LayerRule) -> int | None:
    """Index of the call that attends to the text, in a layer that also attends to an image prompt; else None."""
    if "IPAdapter" in type(module.processor).__name__:
        return 0
    return 1 if rule.image_prompt_first and module.add_k_proj is not None else None


def kind_by_context(
    module: AttentionLayer, hidden_states: Any = None, encoder_hidden_states: Any = None, *args: Any, **kwargs: Any
) -> tuple[Kind, Any]:
    """Kind and text, by the context; some models pass a self-attention layer its input as the context."""
    if encoder_hidden_states is None or encoder_hidden_states is hidden_states:
        return "self", None
    if module.added_kv_proj_dim is not None and not module.only_cross_attention:
        return "joint", "first"
    return "cross", "all"
