"""What a tensor is besides its numbers: a causal bias, a subclass, nested, or inside a functorch transform.

The kernels and the row blocks read memory. A tensor that stands for something else than its memory would silently give
a wrong result, so it is either converted, or refused with a reason.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

TRANSFORMS = {"Grad": "torch.func.grad", "Jvp": "torch.func.jvp"}
REMEDIES = {
    "torch.vmap": "put that dimension into the batch",
    "torch.func.functionalize": "call it outside the transform",
}


def as_causal(attn_mask: Tensor, is_causal: bool, query: Tensor, key: Tensor) -> tuple[Tensor | None, bool]:
    """`attn_mask` and `is_causal`, with a `torch.nn.attention.bias.CausalBias` converted to what it stands for.

    Such a bias is a tensor with uninitialized memory; torch's attention recognizes its class.
    """
    module = sys.modules.get("torch.nn.attention.bias")  # whoever has such a bias has imported it
    if module is None or not isinstance(attn_mask, module.CausalBias):
        return attn_mask, is_causal
    if not all(isinstance(t, Tensor) and not t.is_nested and t.dim() > 1 for t in (query, key)):
        return attn_mask, is_causal  # torch serves it, or another check refuses it
    if is_causal:
        raise ValueError("attn_mask: expected None with is_causal=True, got a CausalBias")
    made_for, lengths = (attn_mask.seq_len_q, attn_mask.seq_len_kv), (query.shape[-2], key.shape[-2])
    if made_for != lengths:
        raise ValueError(f"attn_mask: expected a CausalBias for {lengths} queries and keys, got one for {made_for}")
    if attn_mask.variant == module.CausalVariant.UPPER_LEFT or lengths[0] == lengths[1]:
        return None, True
    keep = torch.ones(lengths, dtype=torch.bool, device=query.device)
    return keep.tril(lengths[1] - lengths[0]), False


def is_plain(*tensors: Any) -> bool:
    """Whether tensors are what their memory says, and only autograd records them.

    Every call asks this about all of its tensors, so it is one loop with few function calls.
    """
    forward_mode = forward_ad._current_level >= 0
    for t in tensors:
        kind = type(t)
        if kind is not Tensor and kind is not torch.nn.Parameter:
            if t is not None and kind is not float and isinstance(t, Tensor):
                return False
        elif (
            t.is_nested
            or t.is_neg()
            or t.layout is not torch.strided
            or _functorch.is_functorch_wrapped_tensor(t)
            or (forward_mode and _has_tangent(t))
        ):
            return False
    return True


def traced() -> bool:
    """Whether torch.jit.trace or a dispatch mode records operations: then no code may read a tensor's numbers."""
    return torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0


def may_read(t: Tensor) -> bool:
    """Whether code may decide by the numbers of this tensor: it has some, and reading them waits for no device."""
    return t.device.type == "cpu" and type(t) in (Tensor, torch.nn.Parameter) and not traced()


def in_transform() -> bool:
    """Whether a functorch transform is active, even if no argument is inside of it."""
    return _functorch.peek_interpreter_stack() is not None


def without_class(t: Any) -> Any:
    """A subclass that only adds a name or attributes as a plain tensor, and a negative view with its signs in memory.

    The imaginary part of a conjugate is such a view.
    """
    if not isinstance(t, Tensor):
        return t
    if type(t) is not Tensor and _changes_nothing(type(t)):
        t = t.as_subclass(Tensor)
    return t.resolve_neg()


def subclass_reasons(tensors: Mapping[str, object]) -> list[str]:
    """Why tensors cannot be read as memory: nested ones, other layouts, and subclasses that change operations."""
    reasons = []
    for name, t in tensors.items():
        if not isinstance(t, Tensor) or (type(t) is Tensor and not t.is_nested and t.layout is torch.strided):
            continue
        if t.is_nested:
            reasons.append(f"{name} is a nested tensor: call for each part, or pad and pass an attn_mask")
        elif t.layout is not torch.strided:
            reasons.append(f"{name} has the layout {t.layout}: pass {name}.to_dense()")
        elif not (_changes_nothing(type(t)) or _is_traced(t)):
            kind = f"{type(t).__module__}.{type(t).__qualname__}"
            reasons.append(f"{name} is a {kind}, a subclass that changes operations: pass a plain tensor of its data")
    return reasons


def transform_reasons(tensors: Mapping[str, object]) -> list[str]:
    """Why an implementation without rules for functorch's transforms and forward-mode gradients cannot serve them."""
    reasons = []
    for name, t in tensors.items():
        if isinstance(t, Tensor) and _functorch.is_functorch_wrapped_tensor(t):
            kind = _transform(t)
            remedy = REMEDIES.get(kind, "use torch.autograd.grad")
            reasons.append(f'{name} is inside {kind}: {remedy}, or use impl="reference"')
        elif isinstance(t, Tensor) and _has_tangent(t):
            reasons.append(
                f'{name} has a forward-mode gradient (jvp): use torch.autograd.grad, or use impl="reference"'
            )
    return reasons


def _transform(t: Tensor) -> str:
    if _functorch.is_batchedtensor(t):
        return "torch.vmap"
    if _functorch.is_functionaltensor(t):
        return "torch.func.functionalize"
    top = _functorch.peek_interpreter_stack()
    return "torch.func.grad or jvp" if top is None else TRANSFORMS.get(top.key().name, "torch.func.grad or jvp")


def _has_tangent(t: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None


def _changes_nothing(kind: Any) -> bool:
    """Whether a subclass overrides neither dispatch nor torch function; a Parameter disables the latter."""
    function = kind.__torch_function__
    usual = function is torch._C._disabled_torch_function_impl
    tensors_function: Any = Tensor.__torch_function__
    usual = usual or getattr(function, "__func__", None) is tensors_function.__func__
    return usual and kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def _is_traced(t: Tensor) -> bool:
    """Whether it is a tensor of torch's tracers, which stands for memory. The operator has rules for them."""
    return type(t).__module__.startswith("torch._subclasses.")
