"""From tensors to a launch of the forward kernel. Triton is imported at the first call."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.arguments import (
    INT32_MAX,
    allocate,
    allocate_like,
    broadcast_strides,
    compile_options,
    describable,
    descriptors,
    mask_kind,
    on_device,
    pipeline_stages,
    scale_arguments,
    tile_span,
)
from ..common.call import AttentionCall
from ..common.plans import Plan, first_launch, launch, layout
from ..common.support import call_target
from .configs import SCHEDULES, ForwardConfig, forward_config
from .measured import Measured, measured

AUTOTUNE_VARIABLE = "ENTROPY_ATTN_AUTOTUNE"


def attention_forward(
    call: AttentionCall, *, config: ForwardConfig | None = None, autotune: bool | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output, lse and entropy by the fused kernel, for a call that `support.unsupported_reasons` accepts.

    `config` overrides the table's choice. `autotune=True` measures the candidates once and remembers the fastest;
    without either argument, the environment variable ENTROPY_ATTN_AUTOTUNE=1 turns autotuning on.
    """
    if config is not None and autotune:
        raise ValueError("config and autotune=True exclude each other")
    if config is None and autotune is None:
        autotune = os.environ.get(AUTOTUNE_VARIABLE, "0") == "1"
    query = call.query
    rows = query.shape[:3]  # [B, H, Nq]
    out = allocate_like(query, call.value.shape[3])
    lse = allocate(rows, torch.float32, query.device) if call.return_lse else None
    entropy = allocate(rows, torch.float32, query.device) if call.return_entropy else None
    if out.numel() == 0:
        return out, lse, entropy

    forward = ForwardCall(call, out, lse, entropy, call_target(query))
    with on_device(query.device):
        if config is not None:
            launch((config, *forward.plan_key()), forward.own(), lambda: forward.launch(config))
        elif autotune:
            launch(("tuned", *forward.plan_key()), forward.own(), lambda: forward.launch(forward.tuned_config()))
        else:
            launch(forward.plan_key(), forward.own(), lambda: forward.launch(forward.table_config()))
    return out, lse, entropy


@dataclass(eq=False)  # frozen, it would take the host longer to fill
class ForwardCall:
    """A call with its outputs, and the arguments that the kernels take for them."""

    call: AttentionCall
    out: Tensor  # (B, H, Nq, Dv)
    # (B, H, Nq). For the sweep of a map beside an added mask (B, H, Nq, 2): the largest score, in the unit of the
    # scores, and the base-2 logarithm of what is left; 0 and -inf of a row without keys.
    lse: Tensor | None
    entropy: Tensor | None  # (B, H, Nq)
    target: str

    def options(self) -> dict[str, Any]:
        """What the configuration depends on, as arguments of ``forward_config``."""
        call = self.call
        return {
            "target": self.target,
            "head_dim": call.query.shape[3],
            "head_dim_v": call.value.shape[3],
            "dtype": call.query.dtype,
            "seqlen_k": call.key.shape[2],
            "has_mask": call.mask is not None,
            "descriptors": self.descriptors_allowed(),
        }

    @functools.cached_property
    def scaling(self) -> tuple[Tensor | None, float, int]:
        """``(tensor or None, factor, stride)``"""
        call = self.call
        return scale_arguments(call.scale, call.query.shape[3], call.mask)

    def table_config(self) -> ForwardConfig:
        """What was measured on such a card to be the fastest for such a call, else the row of the static table."""
        row = self.measured_row()
        return forward_config(**self.options()) if row is None else row.config

    def tuned_config(self) -> ForwardConfig:
        """The fastest candidate, which is measured where it is not known yet."""
        from .autotune import tuned_config

        return tuned_config(self)

    def measured_row(self) -> Measured | None:
        call = self.call
        one_width = call.query.shape[3] == call.value.shape[3]
        plain = one_width and call.mask is None and not call.is_causal
        row = None
        if plain and call.query.dtype != torch.float32:
            lengths = call.query.shape[2], call.key.shape[2]
            row = measured(self.target, call.query.shape[3], *lengths, entropy=self.entropy is not None)
        if row is None or (row.config.descriptors and not self.descriptors_allowed()):
            return None
        whole = call.key.shape[2] % row.config.block_n == 0 and describable(call.query)
        return row if row.config.schedule != "specialized" or whole else None

    def descriptors_allowed(self) -> bool:
        return describable(self.call.key) and describable(self.call.value)

    def own(self) -> tuple[Any, ...]:
        """The values that differ between calls of one ``plan_key``."""
        call = self.call
        tensors = (call.query, call.key, call.value, self.out, self.lse, self.entropy, call.mask)
        return (*tensors, *self.scaling[:2])

    def lse_numbers(self) -> int:
        """In how many numbers a row's lse is returned."""
        return 0 if self.lse is None else 2 if self.lse.dim() == 4 else 1

    def plan_key(self) -> Hashable:
        """All else that the table's configuration, the arguments and the compiled code depend on."""
        call = self.call
        scale = layout(call.scale) if isinstance(call.scale, Tensor) else self.scaling[1] < 0
        wanted = (self.lse_numbers(), self.entropy is not None)
        tensors = (layout(call.query), layout(call.key), layout(call.value), layout(call.mask))
        return ("forward", *tensors, call.query.device, self.target, call.is_causal, scale, *wanted)

    def launch(self, config: ForwardConfig, own: tuple[Any, ...] | None = None) -> Plan | None:
        """Launch the kernel, and return how to launch it again; with another `own` than this call's, if given."""
        batch, num_heads, seqlen_q, _ = self.call.query.shape
        programs = batch * num_heads * -(-seqlen_q // config.block_m)
        kernel, arguments, constants = self.arguments(config)
        options = compile_options(config, self.target, by_pointer=not config.descriptors)
        scratch = config.schedule == "specialized"  # makes a descriptor on the device
        own = self.own() if own is None else own
        return first_launch(kernel, programs, arguments, constants, options, own, scratch)

    def arguments(self, config: ForwardConfig) -> tuple[Any, list[Any], dict[str, Any]]:
        """The kernel, its run-time arguments in order, and its compile-time ones by name."""
        from .kernel import attention_forward_descriptors, attention_forward_pointers

        call = self.call
        specialized = config.schedule == "specialized"
        if config.schedule != "plain" and not config.descriptors:
            raise ValueError(f"schedule={config.schedule!r} needs descriptors; got {config}")
        if config.schedule == "rotated" and any(config.chunks(t.shape[3])[1] for t in (call.query, call.value)):
            # products of a second chunk would still run while the loop takes over their results
            raise ValueError(f"schedule='rotated' needs head dims in one chunk; got {call.query.shape[3]} and {config}")
        if specialized and not (call.mask is None and describable(call.query)):
            raise ValueError(
                "schedule='specialized' needs a call without a mask and a query with 16-byte aligned data and strides; "
                f"got {'no' if call.mask is None else 'a'} mask and query strides {call.query.stride()}"
            )
        if config.descriptors and not self.descriptors_allowed():
            raise ValueError(
                "descriptors need a unit last stride, 16-byte aligned data and strides, and at least one key; "
                f"key has strides {call.key.stride()}, value {call.value.stride()}"
            )
        num_heads, head_dim, head_dim_v = call.query.shape[1], call.query.shape[3], call.value.shape[3]
        d_chunks, v_chunks = config.chunks(head_dim), config.chunks(head_dim_v)
        if config.descriptors:
            kernel = attention_forward_descriptors
            sources = [
                *descriptors(call.key, config.block_n, d_chunks),
                *descriptors(call.value, config.block_n, v_chunks),
            ]
            by_pointer = [call.query, self.out]
        else:
            kernel = attention_forward_pointers
            sources = [call.key, call.value]
            by_pointer = [call.query, call.key, call.value, self.out]

        scale_tensor, factor, scale_stride = self.scaling
        mask_strides = (0, 0, 0, 0) if call.mask is None else broadcast_strides(call.mask)
        strides = [s for t in by_pointer[:-1] for s in t.stride()] + list(self.out.stride()[:3])
        lengths = [num_heads, num_heads // call.key.shape[1], call.query.shape[2], call.key.shape[2]]
        run_time = [
            *[call.query, *sources, self.out, self.lse, self.entropy, call.mask],
            *[scale_tensor, factor, *strides, *mask_strides, scale_stride, *lengths],
        ]
        spans = [tile_span(t, max(config.block_m, config.block_n)) for t in by_pointer]
        spans.append(config.block_m * mask_strides[2] + config.block_n * mask_strides[3])
        compile_time = {
            **{"HEAD_DIM": head_dim, "D0": d_chunks[0], "D1": d_chunks[1], "D2": d_chunks[2]},
            **{"HEAD_DIM_V": head_dim_v, "V0": v_chunks[0], "V1": v_chunks[1], "V2": v_chunks[2]},
            **{"BLOCK_M": config.block_m, "BLOCK_N": config.block_n},
            "MASK": mask_kind(call.mask),
            "MASK_PER_QUERY": mask_strides[2] != 0,
            "IS_CAUSAL": call.is_causal,
            "SCALE_TENSOR": isinstance(call.scale, Tensor),
            "NEGATIVE": factor < 0,
            "RETURN_LSE": self.lse_numbers(),
            "RETURN_ENTROPY": self.entropy is not None,
            # the last blocks are few; only with a mask does their pipeline pay, by fetching it in the scores' layout
            "TAIL_STAGES": 1
            if call.mask is None
            else pipeline_stages(config, self.target, by_pointer=not config.descriptors),
            "STRIDES_IN_EIGHTS": all(s % 8 == 0 for t in by_pointer for s in t.stride()[:3]),
            "WIDE": max(spans) > INT32_MAX,
        }
        if config.descriptors:  # the other kernel knows one schedule
            whole = not call.is_causal and call.key.shape[2] % config.block_n == 0
            compile_time |= {
                "SCHEDULE": SCHEDULES.index(config.schedule),
                "FULL_BLOCKS": config.schedule == "specialized" and whole,
            }
        return kernel, run_time, compile_time
