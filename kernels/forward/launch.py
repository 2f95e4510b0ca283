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
    in_quarters,
    key_tables,
    lengths,
    mask_kind,
    on_device,
    scale_arguments,
    strided,
    tail_stages,
    tile_span,
)
from ..common.call import AllResults, AttentionCall
from ..common.plans import Plan, first_launch, launch, layout
from ..common.support import call_target
from ..common.tensors import RowOutputs, Scale
from ..pingpong import launch as pingpong
from ..pingpong.configs import unsupported_tiles
from .configs import SCHEDULES, ForwardConfig, forward_config
from .measured import Measured, card_name, measured

AUTOTUNE_VARIABLE = "ENTROPY_ATTN_AUTOTUNE"
OfRows = tuple[Tensor | None, Tensor | None, Tensor | None]  # variance, maximum and mass
NO_ROWS: OfRows = (None, None, None)


def attention_forward_all(
    call: AttentionCall, *, config: ForwardConfig | None = None, autotune: bool | None = None
) -> AllResults:
    """All results but the map: `attention_forward` with the statistics of `AttentionCall.row_statistics`."""
    of_rows = allocate_rows(call)
    out, lse, entropy = attention_forward(call, config=config, autotune=autotune, of_rows=of_rows)
    return AllResults(out, lse, entropy, None, *of_rows)


def attention_forward(
    call: AttentionCall, *, config: ForwardConfig | None = None, autotune: bool | None = None,
    of_rows: OfRows = NO_ROWS,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Output, lse and entropy by the fused kernel, for a call that `support.unsupported_reasons` accepts.

    `of_rows` are what it fills of variance, maximum and mass, as `allocate_rows` makes them. `config` overrides the
    table's choice. `autotune=True` measures the candidates once and remembers the fastest; without either argument,
    the environment variable ENTROPY_ATTN_AUTOTUNE=1 turns autotuning on.
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

    forward = ForwardCall(call, out, lse, entropy, call_target(query), *of_rows)
    with on_device(query.device):
        if config is not None:
            launch((config, *forward.plan_key()), forward.varying(), lambda: forward.launch(config))
        elif autotune:
            launch(("tuned", *forward.plan_key()), forward.varying(), lambda: forward.launch(forward.tuned_config()))
        else:
            launch(forward.plan_key(), forward.varying(), lambda: forward.launch(forward.table_config()))
    return out, lse, entropy


def allocate_rows(call: AttentionCall) -> OfRows:
    """Variance, maximum and mass of rows, as far as they are wanted."""
    wanted = (call.return_variance, call.return_max, call.mass_keys is not None)
    shape, device = call.query.shape[:3], call.query.device
    variance, largest, mass = (allocate(shape, torch.float32, device) if each else None for each in wanted)
    return variance, largest, mass


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
    variance: Tensor | None = None  # (B, H, Nq)
    max: Tensor | None = None  # (B, H, Nq)
    mass: Tensor | None = None  # (B, H, Nq)

    def options(self) -> dict[str, Any]:
        """What the configuration depends on, as arguments of `forward_config`."""
        call = self.call
        return {
            "target": self.target,
            "head_dim": call.query.shape[3],
            "head_dim_v": call.value.shape[3],
            "dtype": call.query.dtype,
            "seqlen_k": call.key.shape[2],
            "has_mask": call.mask is not None,
            "descriptors": self.descriptors_allowed(),
            "by_key": call.key_groups or call.mass_keys is not None,
        }

    @functools.cached_property
    def scaling(self) -> tuple[Tensor | None, float, int, int | None]:
        call = self.call
        quarters = (call.mask is not None or call.key_bias is not None) and in_quarters(call)
        return scale_arguments(call.scale, call.query.shape[3], quarters=quarters)

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
        plain = (
            one_width and call.mask is None and not call.is_causal and not call.key_groups and not call.row_statistics
        )
        row = None
        if plain and call.query.dtype != torch.float32:
            lengths = call.query.shape[2], call.key.shape[2]
            card, with_entropy = card_name(call.query.device), self.entropy is not None
            row = measured(self.target, card, call.query.shape[3], *lengths, entropy=with_entropy)
        if row is None or self.refusal(row.config) is not None:
            return None
        whole = call.key.shape[2] % row.config.block_n == 0
        return row if row.config.schedule != "specialized" or whole else None

    def descriptors_allowed(self) -> bool:
        return describable(self.call.key) and describable(self.call.value)

    def varying(self) -> tuple[Any, ...]:
        """The values that differ between calls with the same `plan_key`."""
        call = self.call
        tensors = (call.query, call.key, call.value, self.out, self.lse, self.entropy, call.mask)
        more = (call.key_scale, call.key_bias, self.variance, self.max, self.mass)
        return (*tensors, *self.scaling[:2], *more)

    def lse_numbers(self) -> int:
        """In how many numbers a row's lse is returned."""
        return 0 if self.lse is None else 2 if self.lse.dim() == 4 else 1

    def plan_key(self) -> tuple[Hashable, ...]:
        """All else that the table's configuration, the arguments and the compiled code depend on."""
        call = self.call
        scale = layout(call.scale) if isinstance(call.scale, Tensor) else self.scaling[1] < 0
        wanted: tuple[Hashable, ...] = (self.lse_numbers(), self.entropy is not None)
        tensors = (layout(call.query), layout(call.key), layout(call.value), layout(call.mask))
        # without a function call where there is nothing
        if call.key_scale is not None or call.key_bias is not None:
            wanted = (*wanted, "keys", layout(call.key_scale), layout(call.key_bias), call.key_rows)
        if call.return_variance or call.return_max or call.mass_keys is not None:
            wanted = (*wanted, "rows", call.return_variance, call.return_max, call.mass_keys)
        return ("forward", *tensors, call.query.device, self.target, call.is_causal, scale, *wanted)

    def launch(self, config: ForwardConfig, varying: tuple[Any, ...] | None = None) -> Plan | None:
        """Launch the kernel, and return how to launch it again, with the given `varying` or this call's."""
        batch, num_heads, seqlen_q, _ = self.call.query.shape
        programs = batch * num_heads * -(-seqlen_q // config.block_m)
        kernel, arguments = self.arguments(config)
        options = compile_options(config, self.target, by_pointer=not config.descriptors)
        scratch = config.schedule == "specialized"  # makes a descriptor on the device
        varying = self.varying() if varying is None else varying
        return first_launch(kernel, programs, arguments, options, varying, scratch)

    def refusal(self, config: ForwardConfig) -> str | None:
        """Why the kernel of a configuration cannot serve this call; None where it can."""
        call = self.call
        head_dims = call.query.shape[3], call.value.shape[3]
        if config.schedule != "plain" and not config.descriptors:
            return f"schedule={config.schedule!r}: expected a configuration with descriptors, got {config}"
        if config.schedule == "pingpong":
            reasons = pingpong.unsupported_reasons(call, self.target)
            reasons += unsupported_tiles(
                config.tiles,
                head_dims[0],
                block_m=config.block_m,
                num_warps=config.num_warps,
                max_registers=config.max_registers,
            )
            return f"schedule='pingpong': {'; '.join(reasons)}" if reasons else None
        if config.schedule == "rotated" and any(len(config.in_chunks(d).chunks) > 1 for d in head_dims):
            # products of a second chunk would still run while the loop takes over their results
            return f"schedule='rotated': expected head dims in one chunk, got {head_dims} and {config}"
        if config.schedule == "specialized" and not (call.mask is None and describable(call.query)):
            return (
                "schedule='specialized': expected no mask and a query with 16-byte aligned data and strides, "
                f"got {'no' if call.mask is None else 'a'} mask and query strides {call.query.stride()}"
            )
        if config.schedule == "specialized" and call.key_groups:
            return "schedule='specialized': expected no key_scale and key_bias, which its warps cannot load by pointer"
        if config.descriptors and not self.descriptors_allowed():
            return (
                "descriptors: expected a unit last stride, 16-byte aligned data and strides, and at least one key; "
                f"got key strides {call.key.stride()}, value strides {call.value.stride()}"
            )
        return None

    def require_served(self, config: ForwardConfig) -> None:
        """Raises ValueError where the kernel of a configuration cannot serve this call."""
        refusal = self.refusal(config)
        if refusal is not None:
            raise ValueError(refusal)

    def arguments(self, config: ForwardConfig) -> tuple[Any, dict[str, Any]]:
        """The kernel, and its arguments by name."""
        call = self.call
        self.require_served(config)
        if config.schedule == "pingpong":
            outputs = (self.out, self.lse, self.entropy)
            return pingpong.kernel_arguments(call, outputs, Scale(*self.scaling), config.tiles)
        from . import kernel as forward

        d, v = config.in_chunks(call.query.shape[3]), config.in_chunks(call.value.shape[3])
        mask = broadcast(call.mask)
        by_pointer = [call.query, self.out] if config.descriptors else [call.query, call.key, call.value, self.out]
        rows = max(config.block_m, config.block_n)
        is_causal, sizes = call.is_causal, lengths(call.query, call.key)
        if is_causal and sizes.seqlen_q == 1:
            # The only query attends key 0 alone. Triton makes a constant of a length of 1, and what it then leaves of
            # the causal loops crashes ptxas 12.8 on sm_90.
            is_causal, sizes = False, sizes._replace(seqlen_k=min(sizes.seqlen_k, 1))
        spans = [*(tile_span(t, rows) for t in by_pointer), config.block_m * mask[3] + config.block_n * mask[4]]
        arguments = {
            "q": strided(call.query),
            "out": strided(self.out),
            "lse_ptr": self.lse,
            "entropy_ptr": self.entropy,
            "rows": RowOutputs(self.variance, self.max, self.mass, *(call.mass_keys or (0, 0))),
            "mask": mask,
            "keys": key_tables(call),
            "scale": Scale(*self.scaling),
            "lengths": sizes,
            "D": d,
            "V": v,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "MASK": mask_kind(call.mask),
            "MASK_PER_QUERY": mask.stride_row != 0,
            "IS_CAUSAL": is_causal,
            # 0: unknown, as a tensor's is read on the device
            "SCALE_SIGN": 0 if isinstance(call.scale, Tensor) else -1 if self.scaling[1] < 0 else 1,
            "LSE_IN_TWO": self.lse is not None and self.lse.dim() == 4,
            "BY_LANE": config.by_lane,
            "TAIL_STAGES": tail_stages(config, self.target, call.mask, by_pointer=not config.descriptors),
            "IN_EIGHTS": in_eights(by_pointer),
            "WIDE": max(spans) > INT32_MAX,
        }
        if not config.descriptors:
            arguments["k"], arguments["v"] = strided(call.key), strided(call.value)
            return forward.attention_forward_pointers, arguments
        arguments |= dict(zip(("k0", "k1", "k2"), descriptors(call.key, config.block_n, d), strict=True))
        arguments |= dict(zip(("v0", "v1", "v2"), descriptors(call.value, config.block_n, v), strict=True))
        whole = not is_causal and sizes.seqlen_k % config.block_n == 0
        arguments["SCHEDULE"] = SCHEDULES.index(config.schedule)
        arguments["FULL_BLOCKS"] = config.schedule == "specialized" and whole
        return forward.attention_forward_descriptors, arguments
