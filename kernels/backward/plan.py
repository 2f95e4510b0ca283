"""The launches of one backward call: a kernel with its arguments, and what one kernel leaves for the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.arguments import compile_options
from ..common.plans import Plan, Series, first_launch
from .configs import TileConfig

OF_VALUE, OF_GRAD_OUT, OF_KEY_SCALE = 2, 3, 4  # indices in BackwardCall.varying


@dataclass(frozen=True)
class Launch:
    """One kernel with its arguments by name."""

    kernel: Any  # a jitted function
    programs: int
    arguments: dict[str, Any]
    config: TileConfig

    def run(self, varying: tuple[Any, ...], target: str) -> Plan | None:
        """Launch the kernel, and return how to launch it again."""
        options = compile_options(self.config, target, by_pointer=not self.config.descriptors)
        return first_launch(self.kernel, self.programs, self.arguments, options, varying)


@dataclass(frozen=True)
class BackwardPlan:
    """The launches of one call, in order."""

    rows: Plan
    gradients: Series

    def launch(self, varying: tuple[Any, ...]) -> None:
        self.rows.launch((*varying, *largest_values(varying)))
        self.gradients.launch((*varying, row_bound(varying)))


@dataclass(frozen=True)
class Rows:
    """What the first kernel leaves for the others, (B, H, Nq) each."""

    lse: Tensor
    delta: Tensor
    log2_l: Tensor | None  # with an added mask or a bias of keys
    g: Tensor | None  # with a gradient of the entropy
    bounds: Tensor | None  # (B, Hkv, programs), in float16: the largest |dS| that a program's rows can have


@dataclass(eq=False)  # frozen, it would take the host longer to fill
class KeySums:
    """Where dK and dV are summed: in the results, or in float32 with a sum for each part of the queries."""

    dk: Tensor | None  # (B * parts, Hkv, Nk, D)
    dv: Tensor | None  # (B * parts, Hkv, Nk, Dv)
    parts: int
    queries_per_part: int


def largest_values(varying: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The largest |value| and |key_scale| of a call's `varying`, by which float16's rows bound their |dP| and |dS|."""
    value, grad_out, key_scale, bounds = varying[OF_VALUE], varying[OF_GRAD_OUT], varying[OF_KEY_SCALE], varying[-1]
    if bounds is None:
        return None, None
    norm = torch.linalg.vector_norm
    value_max = None if grad_out is None else norm(value, math.inf, dtype=torch.float32)
    return value_max, None if key_scale is None else norm(key_scale, math.inf, dtype=torch.float32)


def row_bound(varying: tuple[Any, ...]) -> Tensor | None:
    """The largest |dS| of each key head, from what the programs of the rows' kernel found; only in float16."""
    bounds = varying[-1]
    return None if bounds is None else bounds.amax(2)
