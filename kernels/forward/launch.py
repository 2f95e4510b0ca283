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
    broadcast,
    compile_options,
    describable,
    descriptors,
    in_eights,
    lengths,
    mask_kind,
    on_device,
    scale_arguments,
    strided,
    tail_stages,
    tile_span,
)
from ..common.plans import Plan, first_launch, launch, layout
from ..common.support import call_target
from ..common.tensors import Scale
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
            launch((config, *call.plan_key()), call.varying(), lambda: call.launch(config))
        elif autotune:
            launch(("tuned", *call.plan_key()), call.varying(), lambda: call.launch(call.tuned_config()))
        else:
            launch(call.plan_key(), call.varying(), lambda: call.launch(call.table_config()))
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
    def scaling(self) -> Scale:
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

    def varying(self) -> tuple[Any, ...]:
        """The values that differ between calls with the same `plan_key`."""
        tensors = (self.query, self.key, self.value, self.out, self.lse, self.entropy, self.attn_mask)
        return (*tensors, *self.scaling[:2])

    def lse_numbers(self) -> int:
        """In how many numbers a row's lse is returned."""
        return 0 if self.lse is None else 2 if self.lse.dim() == 4 else 1

    def plan_key(self) -> Hashable:
        """All else that the table's configuration, the arguments and the compiled code depend on."""
        scale = layout(self.scale) if isinstance(self.scale, Tensor) else self.scaling.factor < 0
        wanted = (self.lse_numbers(), self.entropy is not None)
        tensors = (layout(self.query), layout(self.key), layout(self.value), layout(self.attn_mask))
        return ("forward", *tensors, self.query.device, self.target, self.is_causal, scale, *wanted)

    def launch(self, config: ForwardConfig, varying: tuple[Any, ...] | None = None) -> Plan | None:
        """Launch the kernel, and return how to launch it again, with the given `varying` or this call's."""
        batch, num_heads, seqlen_q, _ = self.query.shape
        programs = batch * num_heads * -(-seqlen_q // config.block_m)
        kernel, arguments = self.arguments(config)
        options = compile_options(config, self.target, by_pointer=not config.descriptors)
        scratch = config.schedule == "specialized"  # makes a descriptor on the device
        varying = self.varying() if varying is None else varying
        return first_launch(kernel, programs, arguments, options, varying, scratch)

    def require_served(self, config: ForwardConfig) -> None:
        """Raises ValueError where the kernel of a configuration cannot serve this call."""
        if config.schedule != "plain" and not config.descriptors:
            raise ValueError(f"schedule={config.schedule!r}: expected a configuration with descriptors, got {config}")
        head_dims = self.query.shape[3], self.value.shape[3]
        if config.schedule == "rotated" and any(len(config.in_chunks(d).chunks) > 1 for d in head_dims):
            # products of a second chunk would still run while the loop takes over their results
            raise ValueError(f"schedule='rotated': expected head dims in one chunk, got {head_dims} and {config}")
        if config.schedule == "specialized" and not (self.attn_mask is None and describable(self.query)):
            raise ValueError(
                "schedule='specialized': expected no mask and a query with 16-byte aligned data and strides, "
                f"got {'no' if self.attn_mask is None else 'a'} mask and query strides {self.query.stride()}"
            )
        if config.descriptors and not self.descriptors_allowed():
            raise ValueError(
                "descriptors: expected a unit last stride, 16-byte aligned data and strides, and at least one key; "
                f"got key strides {self.key.stride()}, value strides {self.value.stride()}"
            )

    def arguments(self, config: ForwardConfig) -> tuple[Any, dict[str, Any]]:
        """The kernel, and its arguments by name."""
        from . import kernel as forward

        self.require_served(config)
        d, v = config.in_chunks(self.query.shape[3]), config.in_chunks(self.value.shape[3])
        mask = broadcast(self.attn_mask)
        by_pointer = [self.query, self.out] if config.descriptors else [self.query, self.key, self.value, self.out]
        rows = max(config.block_m, config.block_n)
        spans = [*(tile_span(t, rows) for t in by_pointer), config.block_m * mask[3] + config.block_n * mask[4]]
        arguments = {
            "q": strided(self.query),
            "out": strided(self.out),
            "lse_ptr": self.lse,
            "entropy_ptr": self.entropy,
            "mask": mask,
            "scale": self.scaling,
            "lengths": lengths(self.query, self.key),
            "D": d,
            "V": v,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "MASK": mask_kind(self.attn_mask),
            "MASK_PER_QUERY": mask.stride_row != 0,
            "IS_CAUSAL": self.is_causal,
            "SCALE_SIGN": 0 if isinstance(self.scale, Tensor) else -1 if self.scaling.factor < 0 else 1,  # 0: unknown here
            "LSE_IN_TWO": self.lse is not None and self.lse.dim() == 4,
            "TAIL_STAGES": tail_stages(config, self.target, self.attn_mask, by_pointer=not config.descriptors),
            "IN_EIGHTS": in_eights(by_pointer),
            "WIDE": max(spans) > INT32_MAX,
        }
        if not config.descriptors:
            arguments["k"], arguments["v"] = strided(self.key), strided(self.value)
            return forward.attention_forward_pointers, arguments
        arguments |= dict(zip(("k0", "k1", "k2"), descriptors(self.key, config.block_n, d), strict=True))
        arguments |= dict(zip(("v0", "v1", "v2"), descriptors(self.value, config.block_n, v), strict=True))
        whole = not self.is_causal and self.key.shape[2] % config.block_n == 0
        arguments["SCHEDULE"] = SCHEDULES.index(config.schedule)
        arguments["FULL_BLOCKS"] = config.schedule == "specialized" and whole
        return forward.attention_forward_descriptors, arguments
