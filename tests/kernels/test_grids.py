"""No pass launches more programs than fit into a grid: such a call is refused with a reason, before any work.

The tensors are expanded views of one row, so that huge sizes need no memory.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import entropy_attn as ea
from entropy_attn.kernels.backward.configs import backward_config
from entropy_attn.kernels.common import support
from entropy_attn.kernels.common.targets import TARGETS
from entropy_attn.kernels.forward.configs import forward_candidates
from entropy_attn.kernels.maps.configs import heads_per_program, map_config, map_programs

MOST = 2**31 - 1  # a prime


@pytest.fixture(autouse=True, params=["sm_80", "sm_90"])
def target(request, monkeypatch):
    monkeypatch.setattr(support, "_environment_reasons", lambda device: ())
    monkeypatch.setattr(support, "_target", lambda device: request.param)
    return request.param


def huge(batch: int, heads: int, tokens: int, dtype: torch.dtype = torch.float16, grad: bool = False) -> Tensor:
    return torch.zeros(16, dtype=dtype).expand(batch, heads, tokens, 16).requires_grad_(grad)


def reasons(query: Tensor, key: Tensor, **options: object) -> list[str]:
    return ea.unsupported_reasons(query, key, key, **options)


def refused(query: Tensor, key: Tensor, match: str, **options: object) -> None:
    (reason,) = reasons(query, key, **options)
    assert match in reason and str(MOST) in reason
    with pytest.raises(ea.Unsupported, match=str(MOST)):
        ea.attention(query, key, key, **options, impl="triton")


def test_the_forward():
    assert reasons(huge(MOST, 1, 16), huge(MOST, 1, 77)) == []
    refused(huge(MOST, 1, 17), huge(MOST, 1, 77), "query of shape (2147483647, 1, 17, 16)")
    refused(huge(2**28, 8, 16), huge(2**28, 8, 77), "query of shape")


@pytest.mark.parametrize("keys", [77, 128])
def test_a_map_in_one_pass(keys):
    """Its grid is never larger than that of the forward pass."""
    assert reasons(huge(MOST, 1, 16), huge(MOST, 1, keys), map_keys=(0, keys)) == []


def test_a_map_that_is_swept(target):
    config = map_config(target, 16, 16, torch.float16, seqlen_k=4096)
    tile = config.block_n
    key = huge(MOST, 1, 4096)
    assert reasons(huge(MOST, 1, 16), key, map_keys=(0, tile)) == []
    assert reasons(huge(MOST, 1, 16), key, map_keys=(5, tile + 5)) == []
    refused(huge(MOST, 1, 16), key, f"map_keys (0, {tile + 1})", map_keys=(0, tile + 1))
    # the exact limit: one more query or key is refused
    batch = 2**31 // (64 * 64) - 1
    query, key = huge(batch, 1, 64 * config.block_m), huge(batch, 1, 64 * tile + 1)
    assert reasons(query, key, map_keys=(0, 64 * tile)) == []
    refused(query, key, "map_keys", map_keys=(0, 64 * tile + 1))
    refused(huge(batch, 1, 64 * config.block_m + 1), key, "map_keys", map_keys=(0, 64 * tile))


def test_a_map_with_a_mask_for_each_query(target):
    """Such a map has different tiles."""
    plain = map_config(target, 16, 16, torch.float16, seqlen_k=4096)
    masked = map_config(target, 16, 16, torch.float16, seqlen_k=4096, mask_per_query=True)
    query, key = huge(MOST, 1, 16), huge(MOST, 1, 4096)
    mask = torch.ones(16, 4096, dtype=torch.bool)
    assert reasons(query, key, attn_mask=mask, map_keys=(0, masked.block_n)) == []
    refused(query, key, "map_keys", attn_mask=mask, map_keys=(0, masked.block_n + 1))
    assert reasons(query, key, attn_mask=mask[:1], map_keys=(0, plain.block_n)) == []


def test_parts_of_the_heads_count(target):
    """Heads are only distributed over programs if there are few programs, so this never makes a grid too large."""
    config = map_config(target, 64, 64, torch.float16, seqlen_k=4096)
    for batch, queries, columns in ((1, 1, 1), (1, 64, 64), (3, 200, 300), (50, 64, 128)):
        alone = map_programs(config, batch, 1, queries, columns)
        parts = -(-1000 // heads_per_program(target, 1000, alone))
        assert map_programs(config, batch, parts, queries, columns) == alone * parts
        assert parts == 1 or alone * parts < 2 * 132 + alone


def test_the_gradient_of_keys():
    """Its grid is over blocks of keys, and there can be more of these than blocks of queries."""
    tokens = 16 * 2**20
    query, key = huge(2**11, 1, 1), huge(2**11, 1, tokens)
    assert reasons(query, key) == []
    asked = {"grad": True}
    assert reasons(huge(2**10, 1, 1, **asked), huge(2**10, 1, tokens)) == []
    refused(huge(2**11, 1, 1, **asked), key, "the gradient of key with shape (2048, 1, 16777216, 16)")
    assert reasons(huge(2**11 - 1, 1, 1, **asked), huge(2**11 - 1, 1, tokens)) == []
    with torch.no_grad():
        assert reasons(huge(2**11, 1, 1, **asked), key) == []


def test_no_block_is_smaller_than_the_assumed_least_block():
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    for of in TARGETS:
        for dtype in dtypes:
            for head_dim in range(16, 257, 8):
                for config in forward_candidates(of, head_dim, head_dim, dtype):
                    assert config.block_m >= support.LEAST_BLOCK
                for keys in (16, 77, 128, 4096):
                    config = map_config(of, head_dim, head_dim, dtype, seqlen_k=keys)
                    assert min(config.block_m, config.block_n) >= support.LEAST_BLOCK
                for masked in (False, True):
                    if support.backward_unsupported(of, head_dim, head_dim, dtype, has_mask=masked):
                        continue
                    config = backward_config(of, head_dim, head_dim, dtype, has_mask=masked)
                    blocks = (config.rows.block_m, config.query.block_m, config.key.block_n)
                    assert min(blocks) >= support.LEAST_BLOCK
