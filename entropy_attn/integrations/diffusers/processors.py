"""Copies of diffusers' attention processors whose attention calls go to the router.

A processor looks up torch's attention among the globals of its module. The copy is the same code with other globals, in
a class derived from the processor's, with the same attributes. Nothing that others can see is exchanged: a wrapped
layer (see `SwappedProcessor`) uses the copy while it is being called, and shows the original at all other times.
Compared with a TorchFunctionMode, which sees every torch function of the layer, this costs a tenth of the time, and
torch.compile can trace it.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from entropy_attn.errors import Unroutable
from entropy_attn.integrations.diffusers.private import (
    PICKED_BACKENDS,
    TORCH_BACKENDS,
    active_backend,
    dispatch_attention_fn,
)
from entropy_attn.routing.intercept import AttentionCalls

_TORCHS, _DISPATCHER = "scaled_dot_product_attention", "dispatch_attention_fn"
COPY = "_entropy_attn_processor"  # (the original processor, its copy)


class _Calling(threading.local):
    """The layer that this thread is calling, and the function that takes its attention calls."""

    layer: Any = None
    attend: Callable[..., torch.Tensor] | None = None


class _Traced:
    """The same while torch.compile traces a layer."""

    def __init__(self) -> None:
        self.attend: Callable[..., torch.Tensor] | None = None


calling = _Calling()
traced = _Traced()


class SwappedProcessor:
    """Base in front of a layer's class: its processor is the copy while the layer is being called."""

    _modules: dict[str, Any]  # of the layer's class, an `nn.Module`

    @property
    def processor(self) -> Any:
        try:
            original = self.__dict__["processor"]
        except KeyError:
            original = self._modules.get("processor")  # one with parameters
            if original is None:
                raise AttributeError("processor") from None
        if torch.compiler.is_compiling() or calling.layer is self:
            copied = self.__dict__.get(COPY)
            if copied is not None and copied[0] is original:
                return copied[1]
        return original

    @processor.setter
    def processor(self, processor: Any) -> None:
        self.__dict__["processor"] = processor

    @processor.deleter
    def processor(self) -> None:
        del self.__dict__["processor"]


def has_copy(layer: Any) -> bool:
    """Make the copy of the layer's processor if needed; False where there can be none."""
    original = layer.__dict__.get("processor")
    if original is None:
        original = layer._modules.get("processor")
    copied = layer.__dict__.get(COPY)
    if copied is None or copied[0] is not original:
        cls: Any = type(original)
        kind = None if original is None else _copied_class(cls)
        copy: Any = None
        if kind is not None:
            copy = object.__new__(kind)
            copy.__dict__ = original.__dict__
        copied = layer.__dict__[COPY] = original, copy
    return copied[1] is not None


def forget_copy(layer: Any) -> None:
    layer.__dict__.pop(COPY, None)


@functools.cache
def _copied_class(cls: Any) -> type | None:
    function = cls.__call__
    if not isinstance(function, types.FunctionType) or not _calls_attention(function):
        return None
    # Dynamo would look globals up in the module that __name__ names.
    namespace = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    namespace |= {"F": _FUNCTIONAL, _DISPATCHER: _dispatch}
    copy = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, function.__annotations__
    return type(cls.__name__, (cls,), {"__call__": copy, "__module__": cls.__module__})


def _calls_attention(function: types.FunctionType) -> bool:
    """In this code, as F.scaled_dot_product_attention or through the dispatcher, and in no other way."""
    names, namespace = set(function.__code__.co_names), function.__globals__
    direct = (_TORCHS in names and namespace.get("F") is F) or namespace.get(_DISPATCHER) is dispatch_attention_fn
    others = (namespace.get(name) for name in names - {_DISPATCHER})
    helpers = any(
        isinstance(other, types.FunctionType) and {_TORCHS, _DISPATCHER} & set(other.__code__.co_names)
        for other in others
    )
    inherited = "super" in names or ("torch" in names and _TORCHS in names and "F" not in names)
    return direct and bool({_TORCHS, _DISPATCHER} & names) and not helpers and not inherited


def _attend(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Stands in for torch's attention."""
    attend: Any = traced.attend if torch.compiler.is_compiling() else calling.attend
    return attend(*args, **kwargs)


_FUNCTIONAL = types.ModuleType("functional")
vars(_FUNCTIONAL).update({name: value for name, value in vars(F).items() if not name.startswith("__")})
vars(_FUNCTIONAL)["scaled_dot_product_attention"] = _attend


def _dispatch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> torch.Tensor:
    """Stands in for diffusers' dispatcher, whose tensors are (batch, tokens, heads, head dim)."""
    if backend is None:
        backend = active_backend()
    if backend not in TORCH_BACKENDS:
        reason = "it is not torch's scaled_dot_product_attention; set_attention_backend('native')"
        raise Unroutable(f"attention backend {backend!r}", [reason])
    if parallel_config is not None and (attention_kwargs or backend in PICKED_BACKENDS):
        reason = "with its sequence spread over devices, attention takes no attention_kwargs and no picked kernel"
        raise Unroutable(f"attention backend {backend!r}", [f"{reason}; set_attention_backend('native')"])
    if attention_kwargs or backend in PICKED_BACKENDS:
        with AttentionCalls(_attend):
            return dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale,
                enable_gqa,
                attention_kwargs,
                backend=backend,
            )
    if attn_mask is not None and attn_mask.shape == (query.shape[0], key.shape[1]):
        attn_mask = attn_mask[:, None, None]  # of the keys, as diffusers' backends read it
    query, key, value = (tensor.permute(0, 2, 1, 3) for tensor in (query, key, value))
    spread = {} if parallel_config is None else {"spread_keys": True}
    out = _attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, **spread)
    return out.permute(0, 2, 1, 3)
