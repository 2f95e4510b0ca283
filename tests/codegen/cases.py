"""The head dims of a configuration table that the tests compile."""

from __future__ import annotations

from collections.abc import Callable

from entropy_attn.kernels.common.head_dims import MAX_HEAD_DIM, MIN_HEAD_DIM
from entropy_attn.kernels.common.targets import TARGETS

FAMILY = (40, 64, 80, 128, 160)  # head dims of Stable Diffusion and later models
PARTLY_FILLED = 224  # padded to 256, so that the kernel masks columns


def table_cases(
    configuration: Callable[[str, int], object], targets: tuple[str, ...] = TARGETS, *extra: int
) -> list[tuple[str, int]]:
    """`(target, head_dim)` with the widest head dim of each row of a table, and more head dims for the main target.

    `configuration(target, head_dim)` is None for an unsupported head dim. `extra` are added where they are supported.
    """
    cases = []
    for target in targets:
        rows = {d: configuration(target, d) for d in range(MIN_HEAD_DIM, MAX_HEAD_DIM + 1, 8)}
        widest = {d for d, row in rows.items() if row != rows.get(d + 8)}
        chosen = widest | set(extra) | (set(FAMILY) if target == "sm_90" else set())
        cases += [(target, d) for d in sorted(chosen) if rows[d] is not None]
    return cases
