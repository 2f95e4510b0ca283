"""The attention layers of diffusers' models: what their attention calls are of, and what of them cannot be routed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..router import AttentionCalls, LayerCall, Router, Unroutable
from ..scale import Kind
from .models import LayerRule
from .private import TORCH_BACKENDS, AttentionLayer, backend_of, other_processors
from .processors import calling, has_copy

_REMEDY = (
    "set one that does, with set_attn_processor(AttnProcessor2_0()) of the model, AttnProcessor2_0 being of "
    "diffusers.models.attention_processor "
    "(set_default_attn_processor() sets AttnProcessor, which does not)"
)


class _Attend:
    """Takes the attention calls of one call of a layer, and counts them."""

    __slots__ = ("count", "places", "router")

    def __init__(self, router: Router, places: Callable[[int], LayerCall]):
        self.router = router
        self.places = places
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        place = self.places(self.count)
        self.count += 1
        return self.router.attention(place, *args, **kwargs)


def run_layer(
    router: Router,
    name: str,
    module: AttentionLayer,
    rule: LayerRule,
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """Call a layer, whose attention calls are the router's."""
    attend = _Attend(router, _places(name, module, rule, args, kwargs))
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
    # A processor that was copied does call attention: if it did not, a cache answered for the layer at this step.
    if not attend.count and not copied:
        raise Unroutable(f"layer {name!r}", [_explain(module)])
    return result


def _torch_backend(module: AttentionLayer) -> bool:
    """Whether attention that goes through the dispatcher ends in torch's scaled_dot_product_attention."""
    backend = backend_of(module.processor)
    return backend is None or backend in TORCH_BACKENDS


def refusal_of(module: AttentionLayer) -> str | None:
    """Why this layer as it is set up cannot be routed, or None where it can."""
    return _explain(module) if type(module.processor) in other_processors() or not _torch_backend(module) else None


def _explain(module: AttentionLayer) -> str:
    if not _torch_backend(module):
        name = backend_of(module.processor).value
        return (
            f"its attention backend, {name!r}, makes no scaled_dot_product_attention call; set 'native', with "
            "set_attention_backend('native') of the model"
        )
    return f"its processor, {type(module.processor).__name__}, makes no scaled_dot_product_attention call; {_REMEDY}"


def _places(
    name: str, module: AttentionLayer, rule: LayerRule, args: tuple, kwargs: dict[str, Any]
) -> Callable[[int], LayerCall]:
    """What the attention calls within one call of a layer are of, by their order."""
    by_call = rule.kind == "call"
    kind, text = kind_by_context(module, *args, **kwargs) if by_call else kind_of(rule)
    if rule.per_sample:
        samples = len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        return lambda index: LayerCall(name, kind, text, sample=index, samples=samples)
    return lambda index: place_of(name, module, rule, kind, text, index)


@functools.lru_cache(maxsize=4096)
def _place(name: str, kind: Kind, text: Any, ragged: bool) -> LayerCall:
    return LayerCall(name, kind, text, ragged=ragged)


def place_of(name: str, module: AttentionLayer, rule: LayerRule, kind: Kind, text: str | None, index: int) -> LayerCall:
    """The index-th attention call of a layer."""
    first = _own_call(module, rule)
    if first is None or index == first:
        return _place(name, kind, text, rule.ragged)
    return _place(f"{name}.image", "cross", None, False)


def kind_of(rule: LayerRule) -> tuple[Kind, str | None]:
    """Kind of a layer's calls, and where their text is."""
    if rule.kind == "text":
        return "self", "all"
    return rule.kind, "all" if rule.kind == "cross" else rule.text


def _own_call(module: AttentionLayer, rule: LayerRule) -> int | None:
    """Which attention call of a layer that also attends to a picture prompt is not to that; None if it has no such."""
    if "IPAdapter" in type(module.processor).__name__:
        return 0
    return 1 if rule.picture_first and module.add_k_proj is not None else None


def kind_by_context(
    module: AttentionLayer, hidden_states: Any = None, encoder_hidden_states: Any = None, *args: Any, **kwargs: Any
) -> tuple[Kind, Any]:
    """By the context; some models hand a self-attention layer its own input as that."""
    if encoder_hidden_states is None or encoder_hidden_states is hidden_states:
        return "self", None
    if module.added_kv_proj_dim is not None and not module.only_cross_attention:
        return "joint", "first"
    return "cross", "all"
