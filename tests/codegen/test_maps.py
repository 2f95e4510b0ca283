"""The shipped configurations of the map kernels, compiled for their GPUs: no spills, and the matrix units are used."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from entropy_attn.kernels.common.arguments import compile_options
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.targets import TARGETS
from entropy_attn.kernels.maps.configs import MapConfig, map_config
from entropy_attn.kernels.maps.launch import MapCall

from .aot import Code, assert_clean, compile_kernel
from .cases import table_cases
from .sass import MATRIX

HEADS = 8
WIDEST_IN_ONE_PASS = {"sm_80": 256, "sm_89": 192, "sm_90": 256, "sm_100": 128, "sm_120": 192, "gfx942": 256}
JOINT = {"seqlen_k": 4173, "map_keys": (4096, 4173)}


def one_pass(target: str, head_dim: int, seqlen_k: int) -> MapConfig | None:
    config = map_config(target, head_dim, head_dim, torch.float16, seqlen_k=seqlen_k)
    return config if config.one_pass else None


def sweep(target: str, head_dim: int, **options: Any) -> MapConfig:
    return map_config(target, head_dim, head_dim, torch.float16, seqlen_k=1000, **options)


TEXT_KEYS = table_cases(functools.partial(one_pass, seqlen_k=77))
MORE_KEYS = table_cases(functools.partial(one_pass, seqlen_k=120))
SWEEP = table_cases(sweep)
MASKED = table_cases(functools.partial(sweep, mask_per_query=True))


def compile_map(
    target: str,
    head_dim: int,
    *,
    dtype: torch.dtype = torch.float16,
    seqlen_k: int = 77,
    map_keys: tuple[int, int] | None = None,
    mask: str | None = None,
    is_causal: bool = False,
    statistics: bool = True,
    scale: torch.Tensor | None = None,
    heads_inside: bool = False,
    **of_keys: Any,
) -> tuple[Code, MapConfig]:
    """Compile what a call would, with the configuration of the table. The number of queries is no multiple of 16."""

    def tensor(n: int) -> torch.Tensor:
        if heads_inside:
            return torch.empty(2, n, HEADS, head_dim, dtype=dtype).transpose(1, 2)
        return torch.empty(2, HEADS, n, head_dim, dtype=dtype)

    q, k, v, out = tensor(1000), tensor(seqlen_k), tensor(seqlen_k), tensor(1000)
    masks = {
        "bool": torch.empty(2, 1, 1000, seqlen_k, dtype=torch.bool),
        "added": torch.empty(1, HEADS, 1000, seqlen_k, dtype=torch.float16),
        "keys": torch.empty(2, 1, 1, seqlen_k, dtype=torch.bool),
        None: None,
    }
    attn_mask = masks[mask]
    config = map_config(target, head_dim, head_dim, dtype, seqlen_k=seqlen_k, mask_per_query=mask in ("bool", "added"))
    start, stop = map_keys or (0, seqlen_k)
    parts = torch.empty(1, 2, 1000, -(-(stop - start) // 16) * 16)[..., : stop - start]
    stats = torch.empty(2, HEADS, 1000)
    lse = stats if statistics or not config.one_pass else None
    entropy = stats if statistics and config.one_pass else None
    given = AttentionCall(q, k, v, attn_mask, is_causal, scale, map_keys=(start, stop), **of_keys)
    call = MapCall(given, out, lse, entropy, parts, HEADS, target)
    return compile_kernel(*call.arguments(config), target, compile_options(config, target)), config


def matrix_instructions(code: Code) -> int:
    """Matrix instructions of the program, whose only products are in the loop over the heads."""
    return sum(n for op, n in code.program.items() if op in MATRIX or op.startswith("v_mfma"))


def check(target: str, head_dim: int, **options: Any) -> MapConfig:
    code, config = compile_map(target, head_dim, **options)
    assert_clean(code, target)
    assert matrix_instructions(code) > 0
    assert not code.warnings  # for example that wgmma is serialized
    return config


@pytest.mark.parametrize("target", TARGETS)
def test_which_head_dims_take_one_pass(target):
    assert max(d for t, d in TEXT_KEYS if t == target) == WIDEST_IN_ONE_PASS[target]


@pytest.mark.parametrize("target, head_dim", TEXT_KEYS)
def test_text_keys(target, head_dim):
    assert check(target, head_dim).one_pass


@pytest.mark.parametrize("head_dim", (64, 160))
@pytest.mark.parametrize("target", TARGETS)
def test_options_of_one_pass(target, head_dim):
    check(target, head_dim, mask="keys")
    check(target, head_dim, is_causal=True, scale=torch.ones(HEADS), heads_inside=True)


@pytest.mark.parametrize("target", TARGETS)
def test_a_scale_of_each_sample_and_head(target):
    assert check(target, 64, scale=torch.ones(2, HEADS)).one_pass
    assert not check(target, 64, **JOINT, scale=torch.ones(2, HEADS)).one_pass


@pytest.mark.parametrize("head_dim", (64, 128))
@pytest.mark.parametrize("target", TARGETS)
def test_factors_and_biases_of_keys_for_some_queries(target, head_dim):
    for options in ({}, JOINT):
        n = options.get("seqlen_k", 77)
        tables = {name: torch.empty(2, HEADS, 1, n) for name in ("key_scale", "key_bias")}
        check(target, head_dim, **options, **tables, key_rows=(13, 900))


@pytest.mark.parametrize("target", TARGETS)
def test_one_pass_without_statistics(target):
    check(target, 64, statistics=False)


@pytest.mark.parametrize("target, head_dim", MORE_KEYS)
def test_up_to_128_keys(target, head_dim):
    assert check(target, head_dim, seqlen_k=120).one_pass


@pytest.mark.parametrize("target, head_dim", SWEEP)
def test_sweep(target, head_dim):
    assert not check(target, head_dim, **JOINT).one_pass


@pytest.mark.parametrize("target, head_dim", MASKED)
def test_sweep_with_a_mask(target, head_dim):
    check(target, head_dim, **JOINT, mask="bool")
    check(target, head_dim, **JOINT, mask="added")


@pytest.mark.parametrize("head_dim", (64, 256))
@pytest.mark.parametrize("target", TARGETS)
def test_options_of_the_sweep(target, head_dim):
    check(target, head_dim, **JOINT, is_causal=True, scale=torch.ones(HEADS), heads_inside=True)


@pytest.mark.parametrize("target", TARGETS)
def test_float32(target):
    """Exact products use matrix instructions on AMD and FMA on NVIDIA."""
    code, _ = compile_map(target, 256, dtype=torch.float32)
    assert_clean(code, target)
    fma = code.program["FFMA"] + 2 * code.program["FFMA2"]
    assert matrix_instructions(code) > 0 if target == "gfx942" else fma >= 64
