"""From tensors and their gradients to launches of the backward kernels. Triton is imported at the first call."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.arguments import (
    INT32_MAX,
    allocate,
    allocate_like,
    broadcast,
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
from ..common.call import AttentionCall
from ..common.head_dims import MAX_CHUNKS
from ..common.plans import Series, launch, layout
from ..common.support import call_target, lacks_fence
from ..common.tensors import MapGradient, RowValues, Scale
from ..forward.configs import SHORT_KEYS
from .configs import ALL_CHUNKS, BackwardConfig, TileConfig, backward_config, query_parts
from .plan import BackwardPlan, KeySums, Launch, Rows, largest_values, row_bound

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


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
    grad_entropy = None if grad_entropy is None else grad_entropy.contiguous()
    entropy = None if grad_entropy is None or entropy is None else entropy.contiguous()
    out = None if grad_out is None else out
    backward = BackwardCall(
        call, out, lse.contiguous(), entropy, grad_out, grad_lse, grad_entropy, grad_map,
        dq, dk, dv, needs[3], call_target(query),
    )  # fmt: skip
    with on_device(query.device):
        dscale = backward.run(config)
    return dq, dk, dv, dscale


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
        call, one_stage = self.call, lacks_fence(self.target)
        return backward_config(
            self.target,
            call.query.shape[3],
            call.value.shape[3],
            call.query.dtype,
            has_mask=call.mask is not None,
            has_map=self.grad_map is not None,
            by_key=call.key_scale is not None or call.key_bias is not None,
            scale_gradient=self.need_dscale,
            one_stage=one_stage,
            descriptors=self.described() if one_stage else (False, False),
        )

    def described(self) -> tuple[bool, bool]:
        """Whether lengths and strides allow descriptors: of key and value for dQ, of query and dO for dK and dV."""
        call = self.call

        def describable_rows(*streams: Tensor | None) -> bool:
            return all(t is None or (t.shape[2] > SHORT_KEYS and describable(t)) for t in streams)

        value = None if self.grad_out is None else call.value
        return describable_rows(call.key, value), describable_rows(call.query, self.grad_out)

    @functools.cached_property
    def scaling(self) -> tuple[Tensor | None, float, int, int | None]:
        call = self.call
        quarters = (call.mask is not None or call.key_bias is not None) and in_quarters(call)
        return scale_arguments(call.scale, call.query.shape[3], quarters=quarters)

    def varying(self, rows: Rows, parts: Tensor | None, sums: KeySums) -> tuple[Any, ...]:
        """The values that differ between calls with the same `plan_key`; `OF_VALUE` and its like are indices of it."""
        call = self.call
        read = (call.query, call.key, call.value, self.grad_out, call.key_scale, call.key_bias, self.out, self.lse)
        more = (self.entropy, self.grad_lse, self.grad_entropy, self.grad_map, call.mask, *self.scaling[:2])
        written = (self.dq, sums.dk, sums.dv, rows.lse, rows.delta, rows.log2_l, rows.g, parts)
        return (*read, *more, *written, rows.bounds)

    def plan_key(self, config: BackwardConfig | None) -> Hashable:
        """All else that the table's configuration, the arguments and the compiled code depend on."""
        call = self.call
        scale = None if not isinstance(call.scale, Tensor) else layout(call.scale)
        tensors = (layout(call.query), layout(call.key), layout(call.value), layout(call.mask), layout(self.lse))
        map_keys = None if self.grad_map is None else call.map_keys
        of_out = (layout(self.grad_out), layout(self.out), layout(self.grad_map), map_keys)
        of_rows: tuple[Hashable, ...] = (layout(self.grad_lse), layout(self.grad_entropy), layout(self.entropy))
        needs = (self.dq is not None, self.dk is not None, self.dv is not None, self.need_dscale)
        if call.key_scale is not None or call.key_bias is not None:
            of_rows = (*of_rows, layout(call.key_scale), layout(call.key_bias), call.key_rows)
        about = (call.query.device, self.target, config, call.is_causal, scale)
        return ("backward", *tensors, *of_out, *of_rows, *needs, *about)

    def run(self, config: BackwardConfig | None) -> Tensor | None:
        """Runs what is needed, and returns the scale's gradient. `config` overrides the table's choice."""
        call = self.call
        no_gradient = self.grad_out is self.grad_lse is self.grad_entropy is self.grad_map is None
        if no_gradient or call.key.shape[2] == 0 or call.query.numel() == 0:
            for d in (self.dq, self.dk, self.dv):
                if d is not None:
                    d.zero_()
            return torch.zeros_like(call.scale) if isinstance(call.scale, Tensor) and self.need_dscale else None

        chosen = config or self.table_config()
        rows, sums = self.allocate_rows(chosen), self.allocate_key_sums(chosen)
        parts = self.allocate_scale_parts(chosen)
        varying = self.varying(rows, parts, sums)
        launch(self.plan_key(config), varying, lambda: self.launch(chosen, rows, parts, sums, varying))
        if sums.parts > 1:
            for d, of_parts in ((self.dk, sums.dk), (self.dv, sums.dv)):
                if d is not None and of_parts is not None:
                    d.copy_(of_parts.view(-1, sums.parts, *d.shape[1:]).sum(1))
        if self.dv is not None and self.grad_out is None:
            self.dv.zero_()
        if parts is None or not isinstance(call.scale, Tensor):
            return None
        return parts.sum(2).sum_to_size(call.scale.shape).to(call.scale.dtype)

    def launch(
        self, config: BackwardConfig, rows: Rows, parts: Tensor | None, sums: KeySums, varying: tuple[Any, ...]
    ) -> BackwardPlan | None:
        """Launch the kernels, and return how to launch them again."""
        largest = largest_values(varying)
        first = self.rows_launch(config, rows, *largest).run((*varying, *largest), self.target)
        bound = row_bound(varying)
        launches = self.gradient_launches(config, rows, bound, parts, sums)
        gradients = Series.of(each.run((*varying, bound), self.target) for each in launches)
        return None if first is None or gradients is None else BackwardPlan(first, gradients)

    def allocate_rows(self, config: BackwardConfig) -> Rows:
        call, mask = self.call, self.call.mask
        batch, num_heads, seqlen_q, _ = call.query.shape
        heads_kv = call.key.shape[1]
        programs = num_heads // heads_kv * -(-seqlen_q // config.rows.block_m)

        def values(*shape: int) -> Tensor:
            return allocate(shape or (batch, num_heads, seqlen_q), torch.float32, call.query.device)

        return Rows(
            lse=values(),
            delta=values(),
            log2_l=values() if call.key_bias is not None or (mask is not None and mask.dtype != torch.bool) else None,
            g=None if self.grad_entropy is None else values(),
            bounds=values(batch, heads_kv, programs) if call.query.dtype == torch.float16 else None,
        )

    def allocate_scale_parts(self, config: BackwardConfig) -> Tensor | None:
        """One sum a program of the query kernel."""
        if not self.need_dscale:
            return None
        batch, num_heads, seqlen_q, _ = self.call.query.shape
        blocks = -(-seqlen_q // config.query.block_m)
        return allocate((batch, num_heads, blocks), torch.float32, self.call.query.device)

    def in_one_pass(self, config: BackwardConfig) -> bool:
        """Whether the kernel of dK and dV computes dQ as well, since a block of it has all keys."""
        of_keys = self.dk is not None or (self.dv is not None and self.grad_out is not None)
        wanted = of_keys and self.dq is not None and not self.need_dscale
        return wanted and config.one_pass is not None and self.call.key.shape[2] <= config.one_pass.block_n

    def key_tiles(self, config: BackwardConfig) -> TileConfig:
        return config.one_pass if config.one_pass is not None and self.in_one_pass(config) else config.key

    def allocate_key_sums(self, config: BackwardConfig) -> KeySums:
        call, tiles = self.call, self.key_tiles(config)
        batch, heads_kv, seqlen_k, _ = call.key.shape
        programs = batch * heads_kv * -(-seqlen_k // tiles.block_n)
        parts, queries = query_parts(self.target, tiles.block_m, programs, call.query.shape[2], seqlen_k)
        if parts == 1:
            return KeySums(self.dk, self.dv, parts, queries)

        def of_parts(t: Tensor | None) -> Tensor | None:
            shape = (batch * parts, heads_kv, seqlen_k, 0 if t is None else t.shape[3])
            return None if t is None else allocate(shape, torch.float32, t.device)

        return KeySums(of_parts(self.dk), None if self.grad_out is None else of_parts(self.dv), parts, queries)

    def rows_launch(
        self, config: BackwardConfig, rows: Rows, value_max: Tensor | None, factor_max: Tensor | None
    ) -> Launch:
        """The first kernel: what the others read for each row. The maxima: see `largest_values`."""
        from .rows import attention_backward_rows

        call, tiles = self.call, config.rows
        read = {"q": call.query, "k": call.key, "out": self.out, "grad_out": self.grad_out}
        arguments = {
            **self.arguments(tiles, rows, rows.bounds, read),
            "lse_ptr": self.lse,
            "entropy_ptr": self.entropy,
            "grad_lse_ptr": self.grad_lse,
            "grad_entropy_ptr": self.grad_entropy,
            "value_max_ptr": value_max,
            "factor_max_ptr": factor_max,
        }
        return Launch(attention_backward_rows, self.query_programs(tiles), arguments, tiles)

    def gradient_launches(
        self, config: BackwardConfig, rows: Rows, bound: Tensor | None, parts: Tensor | None, sums: KeySums
    ) -> Iterator[Launch]:
        call, tiles = self.call, self.key_tiles(config)
        if self.in_one_pass(config):
            need_dv = 0 if self.dv is None or self.grad_out is None else ALL_CHUNKS
            yield self.key_launch(tiles, rows, bound, sums, 0 if self.dk is None else ALL_CHUNKS, need_dv, self.dq)
            return
        chunks = config.query.launches(call.query.shape[3]) if self.dq is not None else [0]
        if self.dq is not None or parts is not None:
            for i, need in enumerate(chunks):
                yield self.query_launch(config.query, rows, bound, need, parts if i == 0 else None)
        of_dk = config.key.launches(call.key.shape[3]) if self.dk is not None else []
        of_dv = config.key.launches(call.value.shape[3]) if self.dv is not None and self.grad_out is not None else []
        if config.separate or tiles.by_chunk or not (of_dk and of_dv):
            yield from (self.key_launch(tiles, rows, bound, sums, need, 0) for need in of_dk)
            yield from (self.key_launch(tiles, rows, bound, sums, 0, need) for need in of_dv)
        else:
            yield self.key_launch(tiles, rows, bound, sums, ALL_CHUNKS, ALL_CHUNKS)

    def query_launch(
        self, tiles: TileConfig, rows: Rows, bound: Tensor | None, need_dq: int, parts: Tensor | None
    ) -> Launch:
        """The chunks of dQ whose bits `need_dq` has, and the parts of the scale's gradient."""
        from .query import attention_backward_query

        call = self.call
        tensors = self.read() | {"dq": self.dq if need_dq else None}
        arguments = self.arguments(tiles, rows, bound, tensors) | {"dscale_ptr": parts, "NEED_DQ": need_dq}
        streams = {"k": call.key, "v": None if self.grad_out is None else call.value}
        arguments |= self.fetched(tiles, tiles.block_n, streams)
        return Launch(attention_backward_query, self.query_programs(tiles), arguments, tiles)

    def key_launch(
        self, tiles: TileConfig, rows: Rows, bound: Tensor | None, sums: KeySums, need_dk: int, need_dv: int,
        dq: Tensor | None = None,
    ) -> Launch:  # fmt: skip
        """The chunks of dK and of dV whose bits are given, and dQ."""
        from .key import attention_backward_key

        batch, heads_kv, seqlen_k, _ = self.call.key.shape
        tensors = self.read() | {"dq": dq, "dk": sums.dk if need_dk else None, "dv": sums.dv if need_dv else None}
        needs = {"NEED_DK": need_dk, "NEED_DV": need_dv}
        arguments = self.arguments(tiles, rows, bound, tensors) | needs
        arguments |= {"num_heads_kv": heads_kv, "parts": sums.parts, "queries_per_part": sums.queries_per_part}
        arguments |= self.fetched(tiles, tiles.block_m, {"q": self.call.query, "grad_out": self.grad_out})
        programs = batch * heads_kv * -(-seqlen_k // tiles.block_n) * sums.parts
        return Launch(attention_backward_key, programs, arguments, tiles)

    def read(self) -> dict[str, Tensor | None]:
        """What the two gradient kernels read by tiles."""
        return {"q": self.call.query, "k": self.call.key, "v": self.call.value, "grad_out": self.grad_out}

    def fetched(self, tiles: TileConfig, rows: int, streams: dict[str, Tensor | None]) -> dict[str, Any]:
        """What a loop fetches, `rows` at a time: by descriptors, one for each chunk of columns, or by pointer."""
        found: dict[str, Any] = {}
        for name, t in streams.items():
            made: list[Any] = [None] * MAX_CHUNKS
            if tiles.descriptors:
                found[name] = strided(None)
                if t is not None:
                    if not describable(t):
                        raise ValueError(
                            "descriptors: expected a unit last stride, 16-byte aligned data and strides; "
                            f"got {name} strides {t.stride()}"
                        )
                    made = descriptors(t, rows, tiles.in_chunks(t.shape[3]))
            found |= {f"{name}{i}": each for i, each in enumerate(made)}
        return found

    def query_programs(self, tiles: TileConfig) -> int:
        batch, num_heads, seqlen_q, _ = self.call.query.shape
        return batch * num_heads * -(-seqlen_q // tiles.block_m)

    def arguments(
        self, tiles: TileConfig, rows: Rows, bound: Tensor | None, tensors: dict[str, Tensor | None]
    ) -> dict[str, Any]:
        """What all kernels take, by name; `tensors` are those that a kernel reads and writes by tiles."""
        call = self.call
        there = [t for t in tensors.values() if t is not None]
        mask, grad_map = broadcast(call.mask), MapGradient(None)
        if self.grad_map is not None:
            stride_b, stride_row, stride_col = self.grad_map.stride()
            grad_map = MapGradient(self.grad_map, stride_b, stride_row, stride_col, *call.map_range)
        spans = [tile_span(t, max(tiles.block_m, tiles.block_n)) for t in there]
        spans += [tiles.block_m * t.stride_row + tiles.block_n * t.stride_col for t in (mask, grad_map)]
        return {
            **{name: strided(t) for name, t in tensors.items()},
            "grad_map": grad_map,
            "rows": RowValues(rows.lse, rows.log2_l, rows.delta, rows.g, bound),
            "mask": mask,
            "keys": key_tables(call),
            "scale": Scale(*self.scaling),
            "lengths": lengths(call.query, call.key),
            "D": tiles.in_chunks(call.query.shape[3]),
            "V": tiles.in_chunks(call.value.shape[3]),
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "MASK": mask_kind(call.mask),
            "MASK_PER_QUERY": mask.stride_row != 0,
            "IS_CAUSAL": call.is_causal,
            "TAIL_STAGES": tail_stages(tiles, self.target, call.mask, by_pointer=not tiles.descriptors),
            "IN_EIGHTS": in_eights(there),
            "WIDE": max(spans) > INT32_MAX,
        }
