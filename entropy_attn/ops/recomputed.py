"""Gradients inside of an operator, by computing its function once more with autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_HIDDEN = ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView")  # from the kernel of an operator


def recomputed_gradients(
    function: Callable[..., Sequence[Tensor | None]],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of those `tensors` that need one, from the gradients of what `function(*tensors)` returns.

    None for the others. Zeros for a tensor that no result with a gradient depends on.
    """
    with _autograd():
        pairs = list(zip(tensors, needs, strict=True))
        leaves = [t.detach().requires_grad_() if need and t is not None else t for t, need in pairs]
        results = zip(function(*leaves), grads, strict=True)
        given = [(t, g) for t, g in results if t is not None and g is not None and t.requires_grad]
    wanted = [t for t, need in zip(leaves, needs, strict=True) if need and t is not None]
    if given and wanted:
        outputs, of_outputs = zip(*given, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, of_outputs, allow_unused=True, materialize_grads=True))
    else:
        found = (torch.zeros_like(t) for t in wanted)
    return [next(found) if need and t is not None else None for t, need in pairs]


@contextmanager
def _autograd() -> Iterator[None]:
    """Records what is computed. The kernel of an operator runs where dispatch has left autograd behind."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for name in _HIDDEN:
        exclude = exclude.remove(getattr(torch._C.DispatchKey, name))
    include = include.add(torch._C.DispatchKey.ADInplaceOrView)
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield
