"""The forward kernel with tables of keys and statistics of rows, compiled: no spills, and the cost in the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from entropy_attn.kernels.common.targets import TARGETS
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_config

from .aot import Code, assert_clean, compile_call
from .cases import PARTLY_FILLED, table_cases
from .test_forward import HEADS, make_call

ROWS = (5, 900)


def configuration(target: str, head_dim: int) -> ForwardConfig:
    return forward_config(target, head_dim, head_dim, torch.float16, by_key=True)


def masked_configuration(target: str, head_dim: int) -> ForwardConfig:
    return forward_config(target, head_dim, head_dim, torch.float16, by_key=True, has_mask=True)


TABLE = table_cases(configuration, TARGETS, PARTLY_FILLED)
MASKED = table_cases(masked_configuration, TARGETS, PARTLY_FILLED)


def compiled(
    target: str, head_dim: int, *, scale: bool = False, bias: bool = False, rows: tuple[int, int] | None = None,
    variance: bool = False, largest: bool = False, mass: bool = False, config: ForwardConfig | None = None,
    **options: Any,
) -> tuple[Code, ForwardConfig]:  # fmt: skip
    """The kernel of a call with these tables and statistics."""
    call = make_call(target, head_dim, **options)
    of_keys = torch.empty(2, HEADS, 1, call.call.key.shape[2])
    call.call.key_scale, call.call.key_bias = of_keys if scale else None, of_keys if bias else None
    call.call.key_rows = rows
    values = torch.empty(2, HEADS, 1000)
    call.variance, call.max, call.mass = (values if wanted else None for wanted in (variance, largest, mass))
    call.call.mass_keys = (77, 900) if mass else None
    config = config or call.table_config()
    return compile_call(call, config), config


def per_score(code: Code, config: ForwardConfig) -> float:
    return code.loop.total() / (config.block_m * config.block_n / (32 * config.num_warps))


@pytest.mark.parametrize("target, head_dim", TABLE)
def test_everything_at_once(target, head_dim):
    """Both tables for some queries, and all statistics."""
    everything = {"scale": True, "bias": True, "rows": ROWS, "variance": True, "largest": True, "mass": True}
    code, _ = compiled(target, head_dim, **everything)
    assert_clean(code, target)
    assert code.matrix_instructions > 0


@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("target, head_dim", MASKED)
def test_tables_beside_a_mask(target, head_dim, kind):
    shape, dtype = ((2, 1, 1000, 1000), torch.bool) if kind == "bool" else ((1, HEADS, 1000, 1000), torch.float16)
    code, _ = compiled(target, head_dim, scale=True, bias=True, mask=torch.empty(shape, dtype=dtype))
    assert_clean(code, target)
    assert code.matrix_instructions > 0


@pytest.mark.parametrize("target, head_dim", TABLE)
def test_variance_and_maximum_with_the_tiles_of_the_table(target, head_dim):
    code, config = compiled(target, head_dim, variance=True, largest=True)
    assert config == forward_config(target, head_dim, head_dim, torch.float16, seqlen_k=1000)
    assert_clean(code, target)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_what_each_costs_on_hopper(head_dim):
    """In instructions a score. The variance's are two, and three for each row: two rows of 32 scores a thread."""
    plain, config = compiled("sm_90", head_dim)  # with entropy, as all here

    def added(**options: Any) -> float:
        code, _ = compiled("sm_90", head_dim, config=config, **options)
        assert not code.warnings
        assert code.loop["LDG"] == 0, "the loop waits for numbers of keys: they are not in its pipeline"
        return per_score(code, config) - per_score(plain, config)

    assert added(variance=True) <= 2 + 3 / 32 + 0.01
    assert added(largest=True) < 0.05
    assert added(mass=True) < 3.6
    assert added(scale=True) < 2.1
    assert added(bias=True) < 4.7


def test_none_of_them_changes_the_kernel_without():
    """A table that is not there leaves nothing behind: the counts are those that tests of the others compare."""
    without, config = compiled("sm_90", 64)
    rows, _ = compiled("sm_90", 64, rows=ROWS, config=config)  # of no table
    assert without.loop == rows.loop and without.registers == rows.registers
