"""Where the tokens of a spread sequence are, and how the parts of all devices come together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from torch import Tensor

from entropy_attn.integrations.diffusers.context_parallel.private import (
    SeqAllToAllDim,
    all_to_all_single_any_o_async,
    gather_size_by_comm,
)


class Layout:
    """The devices of one sequence, and the part of each.

    Args:
        config: diffusers' `ContextParallelConfig`, after `enable_parallelism`.
    """

    def __init__(self, config: Any):
        self._config = config
        self._mesh = config._flattened_mesh
        self.size: int = self._mesh.size()
        self.rank: int = self._mesh.get_local_rank()
        self.ring: int = config.ring_degree
        self.ulysses: int = config.ulysses_degree
        self.uneven: bool = config.ulysses_anything or config.ring_anything

    @property
    def group(self) -> Any:
        """The process group of the sequence."""
        return self._mesh.get_group()

    def part(self, total: int, rank: int | None = None) -> int:
        """Tokens of a device, by default of this one, where there are `total`: the first ones have those left over."""
        each, left = divmod(total, self.size)
        return each + ((self.rank if rank is None else rank) < left)

    def lengths(self, length: int) -> list[int]:
        """`length` of every device. Communicates where they may differ."""
        return gather_size_by_comm(length, self.group) if self.uneven else [length] * self.size

    def join(self, part: Tensor, dim: int) -> Tensor:
        """The parts of all devices along `dim`, one after the other; a gradient goes to the own part."""
        return _Join.apply(part, dim, self.lengths(part.shape[dim]), self)

    def sum_of_own(self, whole: Tensor, dim: int, lengths: list[int]) -> Tensor:
        """What `join` is transposed to: of `whole` on every device, the sum over devices of the own part."""
        longest = max(lengths)
        parts = [_padded(each, dim, longest) for each in whole.split(lengths, dim)]
        summed = funcol.reduce_scatter_tensor(torch.stack(parts), "sum", 0, self.group)
        return waited(summed).squeeze(0).narrow(dim, 0, lengths[self.rank])

    def heads(self, total: int) -> slice:
        """The heads that this device computes; in Ulysses each has some, the last one perhaps fewer."""
        each = -(-total // self.ulysses)
        first = each * self._config._ulysses_local_rank
        return slice(first, min(first + each, total))

    def own_rows(self, values: Tensor, heads: int, rows: int) -> Tensor:
        """From the own heads of all rows of this Ulysses group, (B, own heads, all rows, C), to (B, H, own rows, C)."""
        if self.ulysses == 1:
            return values
        values, group = values.transpose(1, 2), self._config._ulysses_mesh.get_group()
        if self.uneven:
            values = all_to_all_single_any_o_async(values, group, NUM_QO_HEAD=heads, Q_S_LOCAL=rows)()
        else:
            values = SeqAllToAllDim.apply(group, values, 1, 2)
        return values.transpose(1, 2)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, lengths: list[int], layout: Layout) -> Tensor:
        ctx.own = dim, sum(lengths[: layout.rank]), part.shape[dim]
        longest = max(lengths)
        joined = waited(funcol.all_gather_tensor(_padded(part, dim, longest).contiguous(), dim, layout.group))
        if min(lengths) == longest:
            return joined
        parts = zip(joined.split(longest, dim), lengths, strict=True)
        return torch.cat([each.narrow(dim, 0, length) for each, length in parts], dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad.narrow(*ctx.own), None, None, None


def _padded(part: Tensor, dim: int, length: int) -> Tensor:
    """Not every backend has collectives for parts of different lengths."""
    missing = length - part.shape[dim]
    if not missing:
        return part
    shape = [*part.shape]
    shape[dim] = missing
    return torch.cat([part, part.new_zeros(shape)], dim)


def waited(result: Tensor) -> Tensor:
    """The result of a collective, or a view of it, as a plain tensor. Autograd does not see this step."""
    return result.wait() if isinstance(result, funcol.AsyncCollectiveTensor) else result
