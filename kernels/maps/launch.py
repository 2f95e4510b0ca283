"""From tensors to a launch of the map kernels. Triton is imported at the first call."""

from __future__ import annotations

import functools
import math
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
    in_eights,
    in_quarters,
    key_tables,
    lengths,
    mask_kind,
    on_device,
    scale_arguments,
    strided,
    tile_span,
)
from ..common.call import AllResults, AttentionCall
from ..common.plans import Plan, Series, first_launch, launch, layout
from ..common.support import call_target
from ..common.tensors import MapParts, Scale
from ..forward.launch import AUTOTUNE_VARIABLE, NO_ROWS, ForwardCall, OfRows, allocate_rows
from .configs import MapConfig, heads_per_program, map_config, map_programs


def attention_forward_with_map_all(call: AttentionCall, *, config: MapConfig | None = None) -> AllResults:
    """All results: `attention_forward_with_map` with the statistics of `AttentionCall.row_statistics`.

    These come from the forward kernel, so that with them the map is swept.
    """
    of_rows = allocate_rows(call)
    return AllResults(*attention_forward_with_map(call, config=config, of_rows=of_rows), *of_rows)


def attention_forward_with_map(
    call: AttentionCall, *, config: MapConfig | None = None, of_rows: OfRows = NO_ROWS
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Output, lse, entropy and map for a call with `map_keys` that `support.unsupported_reasons` accepts.

    `config` overrides the table's choice. `of_rows` as for `attention_forward`.
    """
    query, key, (start, stop) = call.query, call.key, call.map_range
    target, by_table = call_target(query), config is None
    if config is None:
        mask_per_query = call.mask is not None and call.mask.shape[2] > 1
        widths = query.shape[3], call.value.shape[3]
        config = map_config(
            target, *widths, query.dtype, seqlen_k=key.shape[2], mask_per_query=mask_per_query,
            sweep=call.row_statistics,
        )  # fmt: skip
    elif config.one_pass and call.row_statistics:
        raise ValueError(
            f"config: expected a sweep for a call with the variance, maximum or mass of rows, got {config}"
        )
    first, second = config.key_tiles
    if config.one_pass and not (first if second else 0) < key.shape[2] <= first + second:
        raise ValueError(f"config: expected tiles whose last one the {key.shape[2]} keys reach, got {config}")
    batch, num_heads, seqlen_q, _ = query.shape
    columns = stop - start
    out = allocate_like(query, call.value.shape[3])
    rows = (batch, num_heads, seqlen_q)
    # a sweep reads lse; with an added mask in two numbers, since one keeps too little of a large one
    in_two = (2,) if not config.one_pass and in_quarters(call) else ()
    with_lse = call.return_lse or not config.one_pass
    lse = allocate((*rows, *in_two), torch.float32, query.device) if with_lse else None
    entropy = allocate(rows, torch.float32, query.device) if call.return_entropy else None

    if out.numel() == 0:
        empty = allocate((batch, seqlen_q, columns), torch.float32, query.device).zero_()
        if lse is not None and lse.dim() == 4:
            lse = lse[..., 0]  # of no row
        return out, lse if call.return_lse else None, entropy, empty
    # A part of the heads for each program, where there are too few blocks to keep the device busy.
    programs = batch * -(-seqlen_q // config.block_m)
    if not config.one_pass:
        programs *= -(-columns // config.block_n)
    heads = heads_per_program(target, num_heads, programs, config.num_warps)
    # Rows of 16 elements start at aligned addresses, so that the tile is stored in wide pieces.
    shape = (-(-num_heads // heads), batch, seqlen_q, -(-columns // 16) * 16)
    parts = allocate(shape, torch.float32, query.device)[..., :columns]
    mapped = MapCall(call, out, lse, entropy, parts, heads, target, of_rows)
    with on_device(query.device):
        plan_key, varying = mapped.plan_key(), mapped.varying()
        tune = not config.one_pass and os.environ.get(AUTOTUNE_VARIABLE, "0") == "1"  # the forward kernel
        if tune or not by_table:
            plan_key = (config, tune, *plan_key)
        launch(plan_key, varying, functools.partial(mapped.launch, config, varying, tune))
    if call.return_lse and lse is not None and lse.dim() == 4:
        lse = lse[..., 0] * 4.0 + lse[..., 1] * math.log(2.0)
    return out, lse if call.return_lse else None, entropy, parts[0] if shape[0] == 1 else parts.sum(0)


@dataclass(eq=False)  # frozen, it would take the host longer to fill
class MapCall:
    """A call with its outputs, and the arguments that the map kernels take for them."""

    call: AttentionCall  # with map_keys
    out: Tensor  # (B, H, Nq, Dv)
    lse: Tensor | None  # as of a ForwardCall; read where the map is swept, written in one pass
    entropy: Tensor | None  # (B, H, Nq)
    map_parts: Tensor  # (parts of the heads, B, Nq, stop - start): their sum is the map
    heads_per_program: int
    target: str
    of_rows: OfRows = NO_ROWS  # for the ForwardCall

    def varying(self) -> tuple[Any, ...]:
        """The values that differ between calls with the same `plan_key`."""
        call = self.call
        written = (self.out, self.lse, self.entropy, self.map_parts)
        tables = (call.key_scale, call.key_bias)
        return (call.query, call.key, call.value, *written, call.mask, *tables, *self.scaling[:2], *self.of_rows)

    def plan_key(self) -> tuple[Hashable, ...]:
        """All else that the table's configuration, the arguments and the compiled code depend on."""
        call = self.call
        scale = layout(call.scale) if isinstance(call.scale, Tensor) else self.scaling[1] < 0
        read: tuple[Hashable, ...] = (layout(call.query), layout(call.key), layout(call.value), layout(call.mask))
        if call.key_groups:
            read = (*read, layout(call.key_scale), layout(call.key_bias), call.key_rows)
        about = (call.map_keys, self.heads_per_program)
        wanted: tuple[Hashable, ...] = (self.lse is not None, self.entropy is not None, *about)
        if self.of_rows is not NO_ROWS:
            wanted = (*wanted, call.return_variance, call.return_max, call.mass_keys)
        return ("map", *read, call.query.device, self.target, call.is_causal, scale, *wanted)

    def launch(self, config: MapConfig, varying: tuple[Any, ...], tune: bool = False) -> Plan | Series | None:
        """Launch the kernel, or the forward kernel and the sweep; and return how to launch it again."""
        if config.one_pass:
            return self.launch_map(config, varying)
        forward = ForwardCall(self.call, self.out, self.lse, self.entropy, self.target, *self.of_rows)
        forward.scaling = self.scaling  # the same object, by which a plan finds the factor among its arguments
        first = forward.launch(forward.tuned_config() if tune else forward.table_config(), varying)
        return Series.of((first, self.launch_map(config, varying)))

    def launch_map(self, config: MapConfig, varying: tuple[Any, ...]) -> Plan | None:
        parts, batch, seqlen_q, columns = self.map_parts.shape
        programs = map_programs(config, batch, parts, seqlen_q, columns)
        kernel, arguments = self.arguments(config)
        return first_launch(kernel, programs, arguments, compile_options(config, self.target), varying)

    @functools.cached_property
    def scaling(self) -> tuple[Tensor | None, float, int, int | None]:
        call = self.call
        return scale_arguments(call.scale, call.query.shape[3], quarters=in_quarters(call))

    def arguments(self, config: MapConfig) -> tuple[Any, dict[str, Any]]:
        """The kernel, and its arguments by name."""
        from . import kernel as maps

        call = self.call
        mask, (start, stop) = broadcast(call.mask), call.map_range
        stride_part, stride_b, stride_row = self.map_parts.stride()[:3]
        by_stride = [call.query, call.key, call.value, self.out] if config.one_pass else [call.query, call.key]
        rows = max(config.block_m, config.block_n)
        spans = [*(tile_span(t, rows) for t in by_stride), config.block_m * mask[3] + config.block_n * mask[4]]
        spans.append(config.block_m * self.map_parts.stride(2) + call.key.shape[2])
        arguments = {
            "q": strided(call.query),
            "k": strided(call.key),
            "lse_ptr": self.lse,
            "parts": MapParts(
                self.map_parts,
                stride_part,
                stride_b,
                stride_row,
                start,
                stop - start,
                self.heads_per_program,
                1.0 / call.query.shape[1],
            ),
            "mask": mask,
            "keys": key_tables(call),
            "scale": Scale(*self.scaling),
            "lengths": lengths(call.query, call.key),
            "D": config.in_chunks(call.query.shape[3]),
            "BLOCK_M": config.block_m,
            "MASK": mask_kind(call.mask),
            "MASK_PER_QUERY": mask.stride_row != 0,
            "IS_CAUSAL": call.is_causal,
            "IN_EIGHTS": in_eights(by_stride),
            "WIDE": max(spans) > INT32_MAX,
        }
        if not config.one_pass:
            return maps.attention_map, arguments | {"BLOCK_N": config.block_n}
        arguments |= {
            "v": strided(call.value),
            "out": strided(self.out),
            "entropy_ptr": self.entropy,
            "V": config.in_chunks(call.value.shape[3]),
            "N0": config.key_tiles[0],
            "N1": config.key_tiles[1],
            "CHECK_KEYS": call.key.shape[2] != config.block_n,
        }
        return maps.attention_short_keys, arguments
