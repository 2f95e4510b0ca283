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
from ..common.plans import Plan, first_launch, launch, layout
from ..common.support import call_target
from .configs import SCHEDULES, ForwardConfig, forward_config
from .measured import Measured, measured

AUTOTUNE_VARIABLE = "ENTROPY_ATTN_AUTOTUNE"


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    return_lse: bool = False,
    return_entropy: bool = False,
    lse_in_two: bool = False,
    config: ForwardConfig | None = None,
    autotune: bool | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``(out, lse, entropy)`` by the fused kernel, for a call that ``support.unsupported_reasons`` lets pass.

    ``config`` overrides the table's choice; ``autotune=True`` measures the candidates once and remembers the fastest.
    With neither, the environment variable ENTROPY_ATTN_AUTOTUNE=1 asks for it. ``lse_in_two`` returns lse as (B, H, Nq,
    2): the largest score, in the unit of the scores, and the base-2 logarithm of what is left; 0 and -inf of a row
    without keys.
    """
    if config is not None and autotune:
        raise ValueError("config and autotune=True exclude each other")
    if config is None and autotune is None:
        autotune = os.environ.get(AUTOTUNE_VARIABLE, "0") == "1"
    batch, num_heads, seqlen_q, _ = query.shape
    out = allocate_like(query, value.shape[3])
    stats = (batch, num_heads, seqlen_q)
    lse = allocate((*stats, 2) if lse_in_two else stats, torch.float32, query.device) if return_lse else None
    entropy = allocate(stats, torch.float32, query.device) if return_entropy else None
    if out.numel() == 0:
        return out, lse, entropy

    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    call = ForwardCall(query, key, value, out, lse, entropy, attn_mask, is_causal, scale, call_target(query))
    with on_device(query.device):
        if config is not None:
            launch((config, *call.plan_key()), call.own(), lambda: call.launch(config))
        elif autotune:
            launch(("tuned", *call.plan_key()), call.own(), lambda: call.launch(call.tuned_config()))
        else:
            launch(call.plan_key(), call.own(), lambda: call.launch(call.table_config()))
    return out, lse, entropy


@dataclass(eq=False)  # frozen, it would take the host longer to fill
class ForwardCall:
    """One call's tensors, and the arguments that the kernels take for them."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor | None
    entropy: Tensor | None
    attn_mask: Tensor | None  # 4-D
    is_causal: bool
    scale: float | Tensor | None
    target: str

    def options(self) -> dict[str, Any]:
        """What the configuration depends on, as arguments of ``forward_config``."""
        return {
            "target": self.target,
            "head_dim": self.query.shape[3],
            "head_dim_v": self.value.shape[3],
            "dtype": self.query.dtype,
            "seqlen_k": self.key.shape[2],
            "has_mask": self.attn_mask is not None,
            "descriptors": self.descriptors_allowed(),
        }

    @functools.cached_property
    def scaling(self) -> tuple[Tensor | None, float, int]:
        """``(tensor or None, factor, stride)``"""
        return scale_arguments(self.scale, self.query.shape[3], self.attn_mask)

    def table_config(self) -> ForwardConfig:
        """What was measured on such a card to be the fastest for such a call, else the row of the static table."""
        row = self.measured_row()
        return forward_config(**self.options()) if row is None else row.config

    def tuned_config(self) -> ForwardConfig:
        """The fastest candidate, which is measured where it is not known yet."""
        from .autotune import tuned_config

        return tuned_config(self)

    def measured_row(self) -> Measured | None:
        one_width = self.query.shape[3] == self.value.shape[3]
        plain = one_width and self.attn_mask is None and not self.is_causal
        row = None
        if plain and self.query.dtype != torch.float32:
            lengths = self.query.shape[2], self.key.shape[2]
            row = measured(self.target, self.query.shape[3], *lengths, entropy=self.entropy is not None)
        if row is None or (row.config.descriptors and not self.descriptors_allowed()):
            return None
        whole = self.key.shape[2] % row.config.block_n == 0 and describable(self.query)
        return row if row.config.schedule != "specialized" or whole else None

    def descriptors_allowed(self) -> bool:
        return describable(self.key) and describable(self.value)

    def own(self) -> tuple[Any, ...]:
        """The values that differ between calls of one ``plan_key``."""
        tensors = (self.query, self.key, self.value, self.out, self.lse, self.entropy, self.attn_mask)
        return (*tensors, *self.scaling[:2])

    def lse_numbers(self) -> int:
        """In how many numbers a row's lse is returned."""
        return 0 if self.lse is None else 2 if self.lse.dim() == 4 else 1

    def plan_key(self) -> Hashable:
        """All else that the table's configuration, the arguments and the compiled code depend on."""
        scale = layout(self.scale) if isinstance(self.scale, Tensor) else self.scaling[1] < 0
        wanted = (self.lse_numbers(), self.entropy is not None)
        tensors = (layout(self.query), layout(self.key), layout(self.value), layout(self.attn_mask))
        return ("forward", *tensors, self.query.device, self.target, self.is_causal, scale, *wanted)

    def launch(self, config: ForwardConfig, own: tuple[Any, ...] | None = None) -> Plan | None:
        """Launch the kernel, and return how to launch it again; with another ``own`` than this call's, if given."""
        from . import kernel as forward

        batch, num_heads, seqlen_q, _ = self.query.shape
        programs = batch * num_heads * -(-seqlen_q // config.block_m)
        name, arguments, constants = self.arguments(config)
        kernel, options = (
            getattr(forward, name),
            compile_options(config, self.target, by_pointer=not config.descriptors),
        )
        scratch = config.schedule == "specialized"  # makes a descriptor on the device
        own = self.own() if own is None else own
        return first_launch(kernel, programs, arguments, constants, options, own, scratch)

    def arguments(self, config: ForwardConfig) -> tuple[str, list[Any], dict[str, Any]]:
        """The kernel's name, its run-time arguments in order, and its compile-time ones."""
        specialized = config.schedule == "specialized"
        if config.schedule != "plain" and not config.descriptors:
            raise ValueError(f"schedule={config.schedule!r} needs descriptors; got {config}")
        if config.schedule == "rotated" and any(config.chunks(t.shape[3])[1] for t in (self.query, self.value)):
            # products of a second chunk would still run while the loop takes over their results
            raise ValueError(f"schedule='rotated' needs head dims in one chunk; got {self.query.shape[3]} and {config}")
        if specialized and not (self.attn_mask is None and describable(self.query)):
            raise ValueError(
                "schedule='specialized' needs a call without a mask and a query with 16-byte aligned data and strides; "
                f"got {'no' if self.attn_mask is None else 'a'} mask and query strides {self.query.stride()}"
            )
        if config.descriptors and not self.descriptors_allowed():
            raise ValueError(
                "descriptors need a unit last stride, 16-byte aligned data and strides, and at least one key; "
                f"key has strides {self.key.stride()}, value {self.value.stride()}"
            )
        num_heads, head_dim, head_dim_v = self.query.shape[1], self.query.shape[3], self.value.shape[3]
        d_chunks, v_chunks = config.chunks(head_dim), config.chunks(head_dim_v)
        if config.descriptors:
            kernel = "attention_forward_descriptors"
            sources = [
                *descriptors(self.key, config.block_n, d_chunks),
                *descriptors(self.value, config.block_n, v_chunks),
            ]
            by_pointer = [self.query, self.out]
        else:
            kernel = "attention_forward_pointers"
            sources = [self.key, self.value]
            by_pointer = [self.query, self.key, self.value, self.out]

        scale_tensor, factor, scale_stride = self.scaling
        mask_strides = (0, 0, 0, 0) if self.attn_mask is None else broadcast_strides(self.attn_mask)
        strides = [s for t in by_pointer[:-1] for s in t.stride()] + list(self.out.stride()[:3])
        lengths = [num_heads, num_heads // self.key.shape[1], self.query.shape[2], self.key.shape[2]]
        run_time = [
            *[self.query, *sources, self.out, self.lse, self.entropy, self.attn_mask],
            *[scale_tensor, factor, *strides, *mask_strides, scale_stride, *lengths],
        ]
        spans = [tile_span(t, max(config.block_m, config.block_n)) for t in by_pointer]
        spans.append(config.block_m * mask_strides[2] + config.block_n * mask_strides[3])
        compile_time = {
            **{"HEAD_DIM": head_dim, "D0": d_chunks[0], "D1": d_chunks[1], "D2": d_chunks[2]},
            **{"HEAD_DIM_V": head_dim_v, "V0": v_chunks[0], "V1": v_chunks[1], "V2": v_chunks[2]},
            **{"BLOCK_M": config.block_m, "BLOCK_N": config.block_n},
            "MASK": mask_kind(self.attn_mask),
            "MASK_PER_QUERY": mask_strides[2] != 0,
            "IS_CAUSAL": self.is_causal,
            "SCALE_TENSOR": isinstance(self.scale, Tensor),
            "NEGATIVE": factor < 0,
            "RETURN_LSE": self.lse_numbers(),
            "RETURN_ENTROPY": self.entropy is not None,
            # the last blocks are few; only with a mask does their pipeline pay, by fetching it in the scores' layout
            "TAIL_STAGES": 1
            if self.attn_mask is None
            else pipeline_stages(config, self.target, by_pointer=not config.descriptors),
            "STRIDES_IN_EIGHTS": all(s % 8 == 0 for t in by_pointer for s in t.stride()[:3]),
            "WIDE": max(spans) > INT32_MAX,
        }
        if config.descriptors:  # the other kernel knows one schedule
            whole = not self.is_causal and self.key.shape[2] % config.block_n == 0
            compile_time |= {
                "SCHEDULE": SCHEDULES.index(config.schedule),
                "FULL_BLOCKS": config.schedule == "specialized" and whole,
            }
        return kernel, run_time, compile_time
