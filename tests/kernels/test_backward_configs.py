"""The configuration table of the backward kernels, which needs neither Triton nor a GPU."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.backward.configs import backward_config, widest
from entropy_attn.kernels.common.support import backward_unsupported
from entropy_attn.kernels.common.targets import INTERPRETER, TARGETS

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("target", [*TARGETS, INTERPRETER])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_call_has_a_configuration_or_a_reason(target, dtype):
    for head_dim in range(16, 257, 8):
        for masked in ({}, {"has_mask": True}, {"has_map": True}, {"has_mask": True, "has_map": True}):
            if backward_unsupported(target, head_dim, 64, dtype, **masked):
                continue
            config = backward_config(target, head_dim, 64, dtype, **masked)
            for tiles in (config.query, config.key):
                assert tiles.in_chunks(head_dim).width >= head_dim
                assert tiles.block_m % 16 == 0 and tiles.block_n % 16 == 0
            assert config.query.launches(head_dim)


@pytest.mark.parametrize("target", TARGETS)
def test_the_head_dims_of_diffusion_models_are_served(target):
    for head_dim in (40, 64, 72, 80, 96, 112, 128, 160):
        for dtype in (torch.float16, torch.bfloat16):
            assert not backward_unsupported(target, head_dim, head_dim, dtype, has_mask=True, has_map=True)


def test_the_widest_heads_are_those_named_in_the_readme():
    half, single = torch.float16, torch.float32
    narrower = {"sm_80": (256, 192), "sm_89": (192, 192), "sm_120": (192, 192)}
    for target in TARGETS:
        plain, masked = (widest(target, half, has_mask=has_mask) for has_mask in (False, True))
        assert widest(target, half, has_map=True) == masked
        assert (plain, masked) == narrower.get(target, (256, 256))
        assert widest(target, single) == widest(target, single, has_mask=True) == (256 if target == "gfx942" else 128)


def test_a_reason_names_the_head_dim_and_the_target():
    (reason,) = backward_unsupported("sm_120", 64, 256, torch.float16, has_map=True)
    assert "head_dim 256 of value" in reason and "sm_120 with a gradient of the map" in reason
    with pytest.raises(ValueError, match=r"target: expected one of sm_80, .*got 'sm_70'"):
        backward_config("sm_70", 64, 64, torch.float16)


def test_one_pass_and_descriptors_are_for_hopper():
    half = torch.float16
    for target in TARGETS:
        for head_dim in (40, 64, 80, 128, 160):
            config = backward_config(target, head_dim, head_dim, half)
            assert (config.one_pass is not None) == (target == "sm_90" and head_dim in (40, 64, 128))
            assert not (config.query.descriptors or config.key.descriptors)
    assert backward_config("sm_90", 64, 64, torch.float32).one_pass is None
    old = backward_config("sm_90", 64, 64, half, one_stage=True, descriptors=(True, False))
    assert (old.query.descriptors, old.key.descriptors, old.one_pass) == (True, False, None)
    masked = backward_config("sm_90", 64, 64, half, has_mask=True, one_stage=True, descriptors=(True, True))
    assert not masked.query.descriptors and masked.one_pass is None
    assert backward_config("sm_90", 64, 64, half, scale_gradient=True).query.block_n == 64


def test_chunks_of_a_result_launched_one_by_one():
    tiles = backward_config("sm_90", 256, 256, torch.float16).key
    assert tiles.by_chunk and tiles.launches(256) == [1, 2] and tiles.launches(64) == [1]
    assert backward_config("sm_90", 64, 64, torch.float16).key.launches(64) == [7]
