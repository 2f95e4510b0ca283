"""From tensors and their gradients to launches of the backward kernels. Triton is imported at the first call."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator
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
    mask_kind,
    on_device,
    pipeline_stages,
    scale_arguments,
    tile_span,
)
from ..common.call import AttentionCall
from ..common.plans import Plan, Series, first_launch, launch, layout
from ..common.support import call_target
from .configs import ALL_CHUNKS, BackwardConfig, TileConfig, backward_config

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
OF_VALUE, OF_GRAD_OUT = 2, 3  # indices in BackwardCall.own


def attention_backward(
    call: AttentionCall,
    out: Tensor | None,
    lse: Tensor,
    entropy: Tensor | None,
    *,
    grad_out: Tensor | None = None,
    grad_lse: Tensor | None = None,
    grad_entropy: Tensor | None = None,
    grad_map: Tensor | None = None,
    needs: tuple[bool, bool, bool, bool] = (True, True, True, False),
    config: BackwardConfig | None = None,
) -> Gradients:
    """Gradients of query, key, value and scale, None where `needs` is False.

    For a call that `support.backward_unsupported` accepts. `lse` is the forward's; `out` is read with `grad_out`, and
    `entropy` with `grad_entropy` only. A gradient that is None costs nothing. `grad_map` (B, Nq, stop - start) belongs
    to the mean over heads of the probabilities of the keys `call.map_keys` = (start, stop).
    """
    if grad_map is not None:
        if call.map_keys is None:
            raise ValueError("grad_map: expected None for a call without map_keys, got a tensor")
        if grad_map.numel() == 0:
            grad_map = None
    query, key, value = call.query, call.key, call.value
    dq = allocate_like(query, query.shape[3]) if needs[0] else None
    dk = allocate_like(key, key.shape[3]) if needs[1] else None
    dv = allocate_like(value, value.shape[3]) if needs[2] else None
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    grad_entropy, entropy = (None, None) if grad_entropy is None else (grad_entropy.contiguous(), entropy.contiguous())
    out = None if grad_out is None else out
    backward = BackwardCall(
        call, out, lse.contiguous(), entropy, grad_out, grad_lse, grad_entropy, grad_map,
        dq, dk, dv, needs[3], call_target(query),
    )  # fmt: skip
    with on_device(query.device):
        dscale = backward.run(config)
    return dq, dk, dv, dscale


@dataclass(frozen=True)
class Launch:
    """One kernel with its arguments: the run-time ones in order, the compile-time ones by name."""

    kernel: Any  # a jitted function
    programs: int
    arguments: list[Any]
    constants: dict[str, Any]
    config: TileConfig

    def run(self, own: tuple[Any, ...], target: str) -> Plan | None:
        """Launch the kernel, and return how to launch it again."""
        options = compile_options(self.config, target)
        return first_launch(self.kernel, self.programs, self.arguments, self.constants, options, own)


@dataclass(frozen=True)
class BackwardPlan:
    """The launches of one call, in order."""

    rows: Plan
    gradients: Series

    def launch(self, own: tuple[Any, ...]) -> None:
        largest = value_max(own)
        self.rows.launch((*own, largest))
        self.gradients.launch((*own, row_bound(own)))


@dataclass(frozen=True)
class Rows:
    """What the first kernel leaves for the others, (B, H, Nq) each."""

    lse: Tensor
    delta: Tensor
    log2_l: Tensor | None  # with an added mask
    g: Tensor | None  # with a gradient of the entropy
    bounds: Tensor | None  # (B, Hkv, programs), in float16: the largest |dS| that a program's rows can have


def value_max(own: tuple[Any, ...]) -> Tensor | None:
    """The largest |value| of a call's ``own``, by which float16's rows bound their |dP|."""
    value, grad_out, bounds = own[OF_VALUE], own[OF_GRAD_OUT], own[-1]
    if bounds is None or grad_out is None:
        return None
    return torch.linalg.vector_norm(value, math.inf, dtype=torch.float32)


def row_bound(own: tuple[Any, ...]) -> Tensor | None:
    """The largest |dS| of each key head, from what the programs of the rows' kernel found; of float16 alone."""
    bounds = own[-1]
    return None if bounds is None else bounds.amax(2)


@dataclass(eq=False)  # frozen, it would take the host longer to fill
class BackwardCall:
    """A call with its results and their gradients, and the launches that they take."""

    call: AttentionCall
    out: Tensor | None  # (B, H, Nq, Dv), with grad_out only
    lse: Tensor  # (B, H, Nq); this and the other tensors of rows are contiguous
    entropy: Tensor | None  # (B, H, Nq), with grad_entropy only
    grad_out: Tensor | None  # (B, H, Nq, Dv)
    grad_lse: Tensor | None  # (B, H, Nq)
    grad_entropy: Tensor | None  # (B, H, Nq)
    grad_map: Tensor | None  # (B, Nq, stop - start)
    dq: Tensor | None  # (B, H, Nq, D)
    dk: Tensor | None  # (B, Hkv, Nk, D)
    dv: Tensor | None  # (B, Hkv, Nk, Dv)
    need_dscale: bool
    target: str

    def table_config(self) -> BackwardConfig:
        call = self.call
        return backward_config(
            self.target,
            call.query.shape[3],
            call.value.shape[3],
            call.query.dtype,
            has_mask=call.mask is not None,
            has_map=self.grad_map is not None,
        )

    @functools.cached_property
    def scaling(self) -> tuple[Tensor | None, float, int]:
        """``(tensor or None, factor, stride)``"""
        call = self.call
        return scale_arguments(call.scale, call.query.shape[3], call.mask)

    def own(self, rows: Rows, parts: Tensor | None) -> tuple[Any, ...]:
        """The values that differ between calls of one ``plan_key``; ``OF_VALUE`` and its like are places in it."""
        call = self.call
        read = (call.query, call.key, call.value, self.grad_out, self.out, self.lse, self.entropy, self.grad_lse)
        read += (self.grad_entropy, self.grad_map, call.mask, *self.scaling[:2])
        written = (self.dq, self.dk, self.dv, rows.lse, rows.delta, rows.log2_l, rows.g, parts)
        return (*read, *written, rows.bounds)

    def plan_key(self, config: BackwardConfig | None) -> Hashable:
        """All else that the table's configuration, the arguments and the compiled code depend on."""
        call = self.call
        scale = None if not isinstance(call.scale, Tensor) else layout(call.scale)
        tensors = (layout(call.query), layout(call.key), layout(call.value), layout(call.mask), layout(self.lse))
        map_keys = None if self.grad_map is None else call.map_keys
        of_out = (layout(self.grad_out), layout(self.out), layout(self.grad_map), map_keys)
        of_rows = (layout(self.grad_lse), layout(self.grad_entropy), layout(self.entropy))
        needs = (self.dq is not None, self.dk is not None, self.dv is not None, self.need_dscale)
        about = (call.query.device, self.target, config, call.is_causal, scale)
        return ("backward", *tensors, *of_out, *of_rows, *needs, *about)

    def run(self, config: BackwardConfig | None) -> Tensor | None:
        """Runs what is needed, and returns the scale's gradient. ``config`` overrides the table's choice."""
        call = self.call
        no_gradient = self.grad_out is self.grad_lse is self.grad_entropy is self.grad_map is None
        if no_gradient or call.key.shape[2] == 0 or call.query.numel() == 0:
            for d in (self.dq, self.dk, self.dv):
                if d is not None:
                    d.zero_()
            return torch.zeros_like(call.scale) if self.need_dscale else None

        chosen = config or self.table_config()
        rows, parts = self.allocate_rows(chosen), self.allocate_scale_parts(chosen)
        own = self.own(rows, parts)
        launch(self.plan_key(config), own, lambda: self.launch(chosen, rows, parts, own))
        if self.dv is not None and self.grad_out is None:
            self.dv.zero_()
        if parts is None:
            return None
        return parts.sum((0, 2) if call.scale.dim() else (0, 1, 2)).to(call.scale.dtype)

    def launch(
        self, config: BackwardConfig, rows: Rows, parts: Tensor | None, own: tuple[Any, ...]
    ) -> BackwardPlan | None:
        """Launch the kernels, and return how to launch them again."""
        largest = value_max(own)
        first = self.rows_launch(config, rows, largest).run((*own, largest), self.target)
        bound = row_bound(own)
        launches = self.gradient_launches(config, rows, bound, parts)
        plans = [each.run((*own, bound), self.target) for each in launches]
        return None if first is None or None in plans else BackwardPlan(first, Series(plans))

    def allocate_rows(self, config: BackwardConfig) -> Rows:
        call = self.call
        batch, num_heads, seqlen_q, _ = call.query.shape
        heads_kv = call.key.shape[1]
        programs = num_heads // heads_kv * -(-seqlen_q // config.rows.block_m)

        def values(needed: bool = True, shape: tuple[int, ...] = (batch, num_heads, seqlen_q)) -> Tensor | None:
            return allocate(shape, torch.float32, call.query.device) if needed else None

        return Rows(
            lse=values(),
            delta=values(),
            log2_l=values(call.mask is not None and call.mask.dtype != torch.bool),
            g=values(self.grad_entropy is not None),
            bounds=values(call.query.dtype == torch.float16, (batch, heads_kv, programs)),
        )

    def allocate_scale_parts(self, config: BackwardConfig) -> Tensor | None:
        """One sum a program of the query kernel."""
        if not self.need_dscale:
            return None
        batch, num_heads, seqlen_q, _ = self.call.query.shape
        blocks = -(-seqlen_q // config.query.block_m)
        return allocate((batch, num_heads, blocks), torch.float32, self.call.query.device)

    def rows_launch(self, config: BackwardConfig, rows: Rows, largest: Tensor | None) -> Launch:
        """The first kernel: what the others read for each row. `largest`: see `value_max`."""
        from .kernel import attention_backward_rows

        call = self.call
        tiles = config.rows
        scale, factor, scale_stride = self.scaling
        tensors = [call.query, call.key, self.out, self.grad_out]
        arguments = [
            *[*tensors, self.lse, self.entropy, self.grad_lse, self.grad_entropy, self.grad_map, largest],
            *[rows.lse, rows.log2_l, rows.delta, rows.g, rows.bounds, call.mask, scale, factor],
            *[s for t in tensors for s in _strides(t, 4)],
            *[*_strides(self.grad_map, 3), *self.mask_strides(), scale_stride],
            *[call.query.shape[1], call.query.shape[1] // call.key.shape[1]],
            *[call.query.shape[2], call.key.shape[2], *self.map_range()],
        ]
        constants = {**self.constants(tiles, tensors), "HAS_LSE": self.grad_lse is not None}
        return Launch(attention_backward_rows, self.query_programs(tiles), arguments, constants, tiles)

    def gradient_launches(
        self, config: BackwardConfig, rows: Rows, bound: Tensor | None, parts: Tensor | None
    ) -> Iterator[Launch]:
        call = self.call
        chunks = config.query.launches(call.query.shape[3]) if self.dq is not None else [0]
        if self.dq is not None or parts is not None:
            for i, need in enumerate(chunks):
                yield self.query_launch(config.query, rows, bound, need, parts if i == 0 else None)
        of_dk = config.key.launches(call.key.shape[3]) if self.dk is not None else []
        of_dv = config.key.launches(call.value.shape[3]) if self.dv is not None and self.grad_out is not None else []
        if config.separate or config.key.by_chunk or not (of_dk and of_dv):
            yield from (self.key_launch(config.key, rows, bound, need, 0) for need in of_dk)
            yield from (self.key_launch(config.key, rows, bound, 0, need) for need in of_dv)
        else:
            yield self.key_launch(config.key, rows, bound, ALL_CHUNKS, ALL_CHUNKS)

    def query_launch(
        self, tiles: TileConfig, rows: Rows, bound: Tensor | None, need_dq: int, parts: Tensor | None
    ) -> Launch:
        """The chunks of dQ whose bits ``need_dq`` has, and the parts of the scale's gradient."""
        from .kernel import attention_backward_query

        dq = self.dq if need_dq else None
        arguments, tensors = self._arguments(rows, bound, [dq, parts], [dq])
        constants = {
            **self.constants(tiles, tensors),
            "HAS_ENTROPY": self.grad_entropy is not None,
            "NEED_DQ": need_dq,
            "NEED_DSCALE": parts is not None,
        }
        return Launch(attention_backward_query, self.query_programs(tiles), arguments, constants, tiles)

    def key_launch(self, tiles: TileConfig, rows: Rows, bound: Tensor | None, need_dk: int, need_dv: int) -> Launch:
        """The chunks of dK and of dV whose bits are given."""
        from .kernel import attention_backward_key

        dk, dv = self.dk if need_dk else None, self.dv if need_dv else None
        batch, heads_kv, seqlen_k, _ = self.call.key.shape
        arguments, tensors = self._arguments(rows, bound, [dk, dv], [dk, dv], heads_kv)
        constants = {**self.constants(tiles, tensors), "NEED_DK": need_dk, "NEED_DV": need_dv}
        programs = batch * heads_kv * -(-seqlen_k // tiles.block_n)
        return Launch(attention_backward_key, programs, arguments, constants, tiles)

    def _arguments(
        self, rows: Rows, bound: Tensor | None, outputs: list[Tensor | None], laid_out: list[Tensor | None], *heads: int
    ) -> tuple[list[Any], list[Tensor | None]]:
        """What the two gradient kernels take alike, and the tensors whose rows they reach by pointer."""
        call = self.call
        scale, factor, scale_stride = self.scaling
        read = [call.query, call.key, call.value, self.grad_out]
        num_heads = call.query.shape[1]
        arguments = [
            *[*read, *outputs, self.grad_map],
            *[rows.lse, rows.log2_l, rows.delta, rows.g, bound, call.mask, scale, factor],
            *[s for t in read for s in _strides(t, 4)],
            *[s for t in laid_out for s in _strides(t, 3)],
            *[*_strides(self.grad_map, 3), *self.mask_strides(), scale_stride],
            *[num_heads, *heads, num_heads // call.key.shape[1]],
            *[call.query.shape[2], call.key.shape[2], *self.map_range()],
        ]
        return arguments, read + laid_out

    def query_programs(self, tiles: TileConfig) -> int:
        batch, num_heads, seqlen_q, _ = self.call.query.shape
        return batch * num_heads * -(-seqlen_q // tiles.block_m)

    def mask_strides(self) -> tuple[int, ...]:
        return (0, 0, 0, 0) if self.call.mask is None else broadcast_strides(self.call.mask)

    def map_range(self) -> tuple[int, int]:
        """The keys of grad_map."""
        return (0, 0) if self.grad_map is None else self.call.map_keys

    def constants(self, tiles: TileConfig, tensors: list[Tensor | None]) -> dict[str, Any]:
        """The compile-time arguments that all kernels have, for those of ``tensors`` that are there."""
        call = self.call
        head_dim, head_dim_v = call.query.shape[3], call.value.shape[3]
        d_chunks, v_chunks = tiles.chunks(head_dim), tiles.chunks(head_dim_v)
        there = [t for t in tensors if t is not None]
        mask_strides, map_strides = self.mask_strides(), _strides(self.grad_map, 3)
        spans = [tile_span(t, max(tiles.block_m, tiles.block_n)) for t in there]
        spans += [tiles.block_m * s[-2] + tiles.block_n * s[-1] for s in (mask_strides, map_strides)]
        return {
            **{"HEAD_DIM": head_dim, "D0": d_chunks[0], "D1": d_chunks[1], "D2": d_chunks[2]},
            **{"HEAD_DIM_V": head_dim_v, "V0": v_chunks[0], "V1": v_chunks[1], "V2": v_chunks[2]},
            **{"BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n},
            "MASK": mask_kind(call.mask),
            "MASK_PER_QUERY": mask_strides[2] != 0,
            "IS_CAUSAL": call.is_causal,
            "SCALE_TENSOR": isinstance(call.scale, Tensor),
            "HAS_DO": self.grad_out is not None,
            "HAS_ENTROPY": self.grad_entropy is not None,
            "HAS_MAP": self.grad_map is not None,
            "RESCALE": call.query.dtype == torch.float16,
            # the last blocks are few; only with a mask does their pipeline pay, by fetching it in the scores' layout
            "TAIL_STAGES": 1 if call.mask is None else pipeline_stages(tiles, self.target),
            "STRIDES_IN_EIGHTS": all(s % 8 == 0 for t in there for s in t.stride()[:3]),
            "WIDE": max(spans) > INT32_MAX,
        }


def _strides(t: Tensor | None, axes: int) -> tuple[int, ...]:
    return (0,) * axes if t is None else t.stride()[:axes]
