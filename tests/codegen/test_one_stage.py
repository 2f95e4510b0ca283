"""Kernels for sm_90 under Triton before 3.7.1 load by pointer, in one stage. Only one of them spills.

The pinned Triton compiles them here, so this tests the kernels and their tiles, not an older compiler.
"""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.backward.rows import attention_backward_rows
from entropy_attn.kernels.common import arguments

from . import test_backward, test_forward, test_maps
from .aot import Code, assert_clean

HEAD_DIMS = (80, 128, 160)
# Bytes of stack. In dQ's kernel with a mask and a map, the tile of the next iteration is held in registers.
STACK = {(160, "query", "mask and map"): 24}
OF_MAPS = {"text": {}, "joint": test_maps.JOINT, "joint and masked": {**test_maps.JOINT, "mask": "added"}}
OF_BACKWARD = {"causal": {"is_causal": True}, "mask and map": {"mask": test_backward.ADDED, "has_map": True}}


@pytest.fixture(autouse=True)
def in_one_stage(monkeypatch):
    monkeypatch.setattr(arguments, "lacks_fence", lambda target: target == "sm_90")
    config = test_forward.make_call("sm_90", 64, seqlen_k=77).table_config()
    assert config.num_stages > 1 and arguments.compile_options(config, "sm_90")["num_stages"] == 1


def assert_good(code: Code, stack: int = 0) -> None:
    """Tiles are loaded through registers: asynchronous copies would need the missing fence."""
    if stack:
        assert 0 < code.stack <= stack
    else:
        assert_clean(code, "sm_90")
    assert code.program["LDGSTS"] == 0, "an asynchronous copy"
    assert code.program["HGMMA"] > 0
    assert not code.warnings


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_short_keys(head_dim):
    code, config = test_forward.compiled("sm_90", head_dim, seqlen_k=77)
    assert not config.descriptors
    assert_good(code)


@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_masks(head_dim, kind):
    shape, dtype = ((2, 1, 1000, 1000), torch.bool) if kind == "bool" else ((1, 8, 1000, 1000), torch.float16)
    assert_good(test_forward.compiled("sm_90", head_dim, mask=torch.empty(shape, dtype=dtype))[0])


@pytest.mark.parametrize("call", OF_MAPS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_maps_of_attention(head_dim, call):
    assert_good(test_maps.compile_map("sm_90", head_dim, **OF_MAPS[call])[0])


@pytest.mark.parametrize("call", OF_BACKWARD)
@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_gradients(head_dim, part, call):
    built = test_backward.compiled("sm_90", head_dim, part, **OF_BACKWARD[call])
    gradients = [code for launch, code in built if launch.kernel is not attention_backward_rows]
    assert gradients
    for code in gradients:
        assert_good(code, STACK.get((head_dim, part, call), 0))
