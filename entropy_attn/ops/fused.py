"""Attention by the Triton kernels, forward and backward. They import Triton at their first call."""

from __future__ import annotations

from torch import Tensor

from ..kernels.backward.launch import attention_backward
from ..kernels.common.call import AllResults, AttentionCall, Results
from ..kernels.forward.launch import attention_forward, attention_forward_all
from ..kernels.maps.launch import attention_forward_with_map, attention_forward_with_map_all


def attention_fused(call: AttentionCall) -> Results:
    """For a call that `support.unsupported_reasons` accepts. Autograd does not record it."""
    if call.map_keys:
        return attention_forward_with_map(call)
    return *attention_forward(call), None


def attention_fused_all(call: AttentionCall) -> AllResults:
    """The same, with the statistics of `AttentionCall.row_statistics`."""
    return attention_forward_with_map_all(call) if call.map_keys else attention_forward_all(call)


def attention_fused_backward(
    call: AttentionCall,
    results: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, attn_mask and scale, None where not needed.

    `results` are out, lse and entropy; `grads` are the gradients of these and of the map.
    """
    grad_out, grad_lse, grad_entropy, grad_map = grads
    dq, dk, dv, dscale = attention_backward(
        call,
        *results,
        grad_out=grad_out,
        grad_lse=grad_lse,
        grad_entropy=grad_entropy,
        grad_map=grad_map,
        needs=(needs[0], needs[1], needs[2], needs[4]),
    )
    return dq, dk, dv, None, dscale
