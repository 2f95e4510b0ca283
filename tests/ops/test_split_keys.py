"""Statistics of attention whose keys are split into chunks, against all keys at once."""

from __future__ import annotations

import math

import pytest
import torch

from entropy_attn.ops.reference import attention_reference
from entropy_attn.ops.split_keys import map_of_keys, merge_statistics
from tests.support.oracle import make_qkv

LENGTHS = [20, 1, 26]


def chunks(q, k, v, mask=None, **options):
    masks = [None] * len(LENGTHS) if mask is None else mask.split(LENGTHS, -1)
    parts = zip(k.split(LENGTHS, 2), v.split(LENGTHS, 2), masks, strict=True)
    results = [attention_reference(q, key, value, attn_mask=m, **options) for key, value, m in parts]
    return torch.stack([r[1] for r in results]), torch.stack([r[2] for r in results])


@pytest.mark.parametrize("gain", [0.1, 1.0, 30.0])
def test_entropy_of_chunks(gain):
    q, k, v = make_qkv(dtype=torch.float64, gain=gain)
    _, lse, entropy, _ = attention_reference(q, k, v)
    found = merge_statistics(*chunks(q, k, v))
    assert (found[0] - lse).abs().max() <= 1e-13 * max(1.0, gain)
    assert (found[1] - entropy).abs().max() <= 1e-13 * max(1.0, gain)


def test_without_the_entropy_of_the_weights_it_is_wrong():
    q, k, v = make_qkv(dtype=torch.float64)
    entropy = attention_reference(q, k, v)[2]
    lses, entropies = chunks(q, k, v)
    weights = (lses - lses.logsumexp(0)).exp()
    assert ((weights * entropies).sum(0) - entropy).abs().min() > 0.1


def test_rows_without_keys_in_a_chunk_or_at_all():
    q, k, v = make_qkv(1, 2, 5, sum(LENGTHS), 16, dtype=torch.float64)
    mask = torch.ones(1, 1, 5, sum(LENGTHS), dtype=torch.bool)
    mask[..., 0, :20] = mask[..., 1, 20:] = mask[..., 2, :] = False
    _, lse, entropy, head_mean = attention_reference(q, k, v, attn_mask=mask, map_keys=(3, 9))
    found = merge_statistics(*chunks(q, k, v, mask))
    assert found[0][0, 0, 2] == -math.inf and found[1][0, 0, 2] == 0.0
    torch.testing.assert_close(found, (lse, entropy), rtol=0, atol=1e-14)
    for given in (mask[..., 3:9], torch.zeros(mask[..., 3:9].shape).masked_fill(~mask[..., 3:9], -math.inf)):
        maps = map_of_keys(q, k[:, :, 3:9], found[0], mask=given)
        torch.testing.assert_close(maps, head_mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [None, 0.3, torch.tensor(0.3), torch.linspace(0.1, 0.5, 4),
                                   torch.linspace(0.1, 0.5, 8).view(2, 4)], ids=str)  # fmt: skip
@pytest.mark.parametrize("block", [1 << 24, 1, 100])
def test_map_by_the_log_sum_exp_of_all_keys(scale, block, monkeypatch):
    monkeypatch.setattr("entropy_attn.ops.split_keys.BLOCK_SCORES", block)
    q, k, v = make_qkv(dtype=torch.float64)
    _, lse, _, head_mean = attention_reference(q, k, v, scale=scale, map_keys=(7, 20))
    found = map_of_keys(q, k[:, :, 7:20], lse, scale=scale)
    assert (found - head_mean).abs().max() <= 1e-15


def test_map_in_lower_precision():
    q, k, v = make_qkv(dtype=torch.bfloat16)
    _, lse, _, head_mean = attention_reference(q, k, v, map_keys=(7, 20))
    found = map_of_keys(q, k[:, :, 7:20], lse.float())
    assert found.dtype == torch.float32 and (found - head_mean).abs().max() <= 1e-6
