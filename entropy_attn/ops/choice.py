"""Which implementation serves a call.

`impl="auto"` takes the faster one for a call without statistics, if both were timed. The rows are those of
`kernels/forward/measured.csv`: fp16 or bf16 without a mask, causality or grouped heads. A call without a row goes to
torch, so that no call becomes slower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import Unsupported
from ..kernels.common.call import AttentionCall
from ..kernels.common.support import call_target
from ..kernels.forward.measured import card_name, measured, table
from .autocast import as_autocast
from .implementations import IMPLEMENTATIONS, SDPA, TRITON, Implementation
from .tensor_kinds import is_plain, subclass_reasons, transform_reasons

AUTO = "auto"
IMPLS = (AUTO, *IMPLEMENTATIONS)
TORCH = (AUTO, SDPA.name)  # without statistics these take torch's attention, which may know more kinds of tensors


def check_impl(impl: str) -> None:
    if impl not in IMPLS:
        names = [repr(name) for name in IMPLS]
        raise ValueError(f"impl: expected {', '.join(names[:-1])} or {names[-1]}, got {impl!r}")


def implementation(impl: str, call: AttentionCall) -> Implementation:
    """The named one, or for "auto" the one that the call is served best by.

    Raises:
        Unsupported: the named one cannot serve the call.
    """
    if impl == AUTO:
        return automatic(call)
    named = IMPLEMENTATIONS[impl]
    reasons = named.reasons(call)
    if reasons:
        raise Unsupported(impl, reasons)
    return named


def automatic(call: AttentionCall) -> Implementation:
    """Never slower than torch for a plain call; the fused kernel for what torch's attention does not take."""
    if call.query.device.type != "cuda":
        return SDPA
    if call.statistics or call.key_groups or isinstance(call.scale, Tensor) or _wider(call.attn_mask, call.query):
        choice = TRITON
    else:
        choice = _measured_choice(call)
    return SDPA if choice is TRITON and TRITON.reasons(call) else choice


def chosen_impl(query: Tensor, key: Tensor, value: Tensor, *, return_entropy: bool = False) -> str:
    """The name of what `impl="auto"` takes for a call without a mask and with a number as scale."""
    return automatic(AttentionCall(query, key, value, return_entropy=return_entropy)).name


def may_choose(query: Tensor) -> bool:
    """Whether there is a choice for calls without statistics. It costs less than making the choice."""
    return query.device.type == "cuda" and not torch.compiler.is_compiling() and bool(table())


def may_be_measured(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attention` takes these arguments of torch's attention, and a measured row could hold for them."""
    tensors = isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)
    if not (tensors and is_plain(query, key, value)):
        return False
    q, k, v = as_autocast(query, key, value)
    one_kind = q.dtype == k.dtype == v.dtype and q.device == k.device == v.device and key.shape[:3] == value.shape[:3]
    return one_kind and takes_shapes(query, key, value) and 0 < query.shape[3] == key.shape[3]


def takes_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool = False) -> bool:
    """Whether `attention` takes these shapes; torch's attention also broadcasts and takes other ranks."""
    if not query.dim() == key.dim() == value.dim() == 4:
        return False
    q, k, v = query.shape, key.shape, value.shape
    return q[0] == k[0] == v[0] and (enable_gqa or q[1] == k[1] == v[1])


def kind_reasons(impl: str, *tensors: object, **others: object) -> list[str]:
    """Why `impl` cannot read these five and other tensors as memory. torch's attention may serve them all the same."""
    named = dict(zip(("query", "key", "value", "attn_mask", "scale"), tensors, strict=True)) | others
    reasons = subclass_reasons(named)
    if impl != AUTO and IMPLEMENTATIONS[impl].takes_transforms:
        return reasons
    return reasons + transform_reasons(named)


def _measured_choice(call: AttentionCall) -> Implementation:
    """The faster one of a row for a call without statistics; torch's attention where there is no row.

    A compiled graph takes torch's: the choice would be of one length.
    """
    query, key = call.query, call.key
    covered = (
        may_choose(query)
        and query.dtype in (torch.float16, torch.bfloat16)
        and call.attn_mask is None
        and not call.is_causal
        and query.shape[1] == key.shape[1]
        and query.shape[3] == call.value.shape[3]
    )
    if not covered:
        return SDPA
    shape = query.shape[3], query.shape[2], key.shape[2]
    row = measured(call_target(query), card_name(query.device), *shape, entropy=False)
    return TRITON if row is not None and row.faster_than_torch else SDPA


def _wider(attn_mask: Tensor | None, query: Tensor) -> bool:
    """Whether a mask is added that torch's fused attention does not take with this query."""
    return attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype)
