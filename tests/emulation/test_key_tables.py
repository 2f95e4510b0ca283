"""Factors and biases of keys in the gradients and the maps, as compiled machine code on an emulated card."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.maps.configs import map_config
from tests.kernels import test_key_tables_backward as gradients
from tests.kernels import test_key_tables_maps as maps
from tests.kernels.test_key_tables_backward import table
from tests.support.oracle import make_qkv

from .card import emulated

ROWS = (13, 36)  # they begin and end inside of tiles


@pytest.mark.parametrize("target, seqlen_k, dtype", [("sm_80", 130, torch.float16), ("sm_90", 77, torch.bfloat16)])
def test_gradients(target, seqlen_k, dtype):
    """On Hopper, 77 keys take one kernel for dQ, dK and dV."""
    q, k, v = make_qkv(1, 2, 40, seqlen_k, 64, heads_kv=1, dtype=dtype)
    with emulated(target):
        gradients.check(q, k, v, key_scale=table(2, seqlen_k), key_bias=table(seqlen_k, seed=1), key_rows=ROWS)


@pytest.mark.parametrize("target, seqlen_k", [("sm_80", 77), ("sm_90", 150)])
def test_maps(target, seqlen_k):
    q, k, v = make_qkv(1, 2, 40, seqlen_k, 64, heads_kv=1, dtype=torch.float16)
    config = map_config(target, 64, 64, q.dtype, seqlen_k=seqlen_k)
    assert config.one_pass == (seqlen_k == 77)
    tables = {"key_scale": table(2, seqlen_k), "key_bias": table(seqlen_k, seed=1)}
    with emulated(target):
        maps.check(q, k, v, config, map_keys=(5, 70), **tables, key_rows=ROWS)
