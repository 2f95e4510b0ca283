"""Probabilities of parts of the matrix, against the whole matrix in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from entropy_attn.ops import probabilities as module
from entropy_attn.ops.api import attention
from entropy_attn.ops.probabilities import Logits, probabilities
from tests.ops.test_sdpa import LargestTensor

B, H, NQ, NK, D = 2, 6, 13, 11, 8
ROWS, KEYS, HEADS = torch.tensor([12, 0, 5, 6]), torch.tensor([3, 4, 10]), (4, 1)


def tensors(kv_heads: int = H, dtype: torch.dtype = torch.float32, nq: int = NQ, nk: int = NK) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(kv_heads + nk)
    q = torch.randn(B, nq, H, D, generator=generator).transpose(1, 2) * 2
    k, v = (torch.randn(B, kv_heads, nk, D, generator=generator) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def whole(q: torch.Tensor, k: torch.Tensor, scale: Any, mask: Any, factor: Any, bias: Any) -> torch.Tensor:
    """(B, H, Nq, Nk) in float64; factor and bias broadcast to that shape."""
    k = k.double().repeat_interleave(H // k.shape[1], dim=1)
    scale = D**-0.5 if scale is None else scale
    scale = scale.double()[..., None, None] if isinstance(scale, torch.Tensor) and scale.dim() else scale
    s = (q.double() @ k.mT) * scale * factor + bias
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask.double()
    return s.softmax(-1).nan_to_num(0.0)


def bool_mask() -> torch.Tensor:
    mask = torch.rand(B, 1, NQ, NK, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[0, :, 5] = False  # a row without keys
    return mask


def inside() -> torch.Tensor:
    return ((torch.arange(NQ) >= 4) & (torch.arange(NQ) < 9))[:, None]


FACTOR = torch.linspace(0.5, 1.5, H * NK).reshape(H, NK)
BIAS = torch.linspace(-1, 1, B * NK).reshape(B, 1, NK)
GROUPS = torch.arange(NQ) % 3
TABLE = torch.randn(3, NK, generator=torch.Generator().manual_seed(2))
# name: (number of key heads, arguments of the call, factor and bias by key of the whole matrix)
CASES: dict[str, tuple[int, dict[str, Any], Any, Any]] = {
    "plain": (H, {}, 1.0, 0.0),
    "grouped heads": (2, {"scale": torch.linspace(0.1, 0.6, H)}, 1.0, 0.0),
    "scales of samples": (3, {"scale": torch.linspace(0.1, 0.9, B * H).view(B, H)}, 1.0, 0.0),
    "boolean mask": (3, {"attn_mask": bool_mask(), "scale": 0.7}, 1.0, 0.0),
    "mask of keys": (H, {"attn_mask": torch.linspace(-2, 1, NK)}, 1.0, 0.0),
    "mask of rows": (H, {"attn_mask": torch.linspace(-2, 1, NQ)[:, None], "scale": torch.tensor(0.4)}, 1.0, 0.0),
    "key groups": (H, {"key_scale": FACTOR, "key_bias": BIAS}, FACTOR[:, None], BIAS[:, None]),
    "rows of key groups": (
        2,
        {"key_scale": FACTOR, "key_bias": BIAS, "key_rows": (4, 9)},
        torch.where(inside(), FACTOR[:, None], 1.0),
        torch.where(inside(), BIAS[:, None], 0.0),
    ),
    "groups of rows": (H, {"key_bias": TABLE, "key_rows": GROUPS}, 1.0, TABLE[GROUPS]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [1, 1 << 24], ids=["row by row", "at once"])
def test_parts_are_those_of_the_whole_matrix(case: str, block: int, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SCORES", block)
    kv_heads, arguments, factor, bias = CASES[case]
    q, k, v = tensors(kv_heads)
    matrix = whole(q, k, arguments.get("scale"), arguments.get("attn_mask"), factor, bias)
    lse = attention(q, k, v, enable_gqa=True, return_lse=True, **arguments).lse
    logits = Logits(**arguments)
    part = matrix[:, :, ROWS][..., KEYS]
    for heads, expected in ((None, part.mean(1, keepdim=True)), (HEADS, part[:, HEADS])):
        found = probabilities(q, k, lse, logits, rows=ROWS, keys=KEYS, heads=heads)
        torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=1e-6)
    of_rows, of_keys = torch.rand(2, len(ROWS)), torch.rand(4, len(KEYS))
    found = probabilities(
        q, k, lse, logits, rows=ROWS, keys=KEYS, heads=HEADS, row_weights=of_rows, key_weights=of_keys
    )
    expected = of_rows.double() @ part[:, HEADS] @ of_keys.double().mT
    torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=1e-6)
    found = probabilities(q, k, lse, logits, rows=slice(2, 9), keys=slice(1, 8))
    torch.testing.assert_close(found[:, 0], matrix[:, :, 2:9, 1:8].mean(1).float(), rtol=2e-5, atol=1e-6)


def test_rows_and_keys_of_each_sample():
    q, k, v = tensors(2)
    rows, keys = torch.tensor([[3, 4, 5], [0, 12, 2]]), torch.tensor([[1, 2], [9, 0]])
    for mask in (bool_mask(), torch.linspace(-2, 1, NK)):
        matrix = whole(q, k, None, mask, 1.0, 0.0)
        lse = attention(q, k, v, enable_gqa=True, return_lse=True, attn_mask=mask).lse
        found = probabilities(q, k, lse, Logits(attn_mask=mask), rows=rows, keys=keys, heads=HEADS)
        for sample in range(B):
            expected = matrix[sample][list(HEADS)][:, rows[sample]][..., keys[sample]]
            torch.testing.assert_close(found[sample], expected.float(), rtol=2e-5, atol=1e-6)


def test_no_rows_and_one_key():
    q, k, v = tensors(nk=1)
    lse = attention(q, k, v, return_lse=True).lse
    found = probabilities(q, k, lse, rows=ROWS, keys=slice(0, 1))
    torch.testing.assert_close(found, torch.ones(B, 1, 4, 1), rtol=0, atol=1e-6)
    none = torch.tensor([], dtype=torch.long)
    assert probabilities(q, k, lse, rows=none, keys=slice(0, 1), heads=HEADS).shape == (B, 2, 0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype):
    """The products are in float32: no error of the query's dtype beyond that of the query itself."""
    q, k, v = tensors(dtype=dtype)
    found = probabilities(q, k, attention(q, k, v, return_lse=True).lse, rows=ROWS, keys=KEYS)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = whole(q, k, None, None, 1.0, 0.0)[:, :, ROWS][..., KEYS].mean(1, keepdim=True)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-5)


def test_in_an_autocast_region():
    q, k, v = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = probabilities(q, k, attention(q, k, v, return_lse=True).lse, rows=slice(0, NQ), keys=slice(0, NK))
    torch.testing.assert_close(found.sum(-1), torch.ones(B, 1, NQ), rtol=1e-4, atol=1e-5)  # of the same logits


def test_logits_of_extreme_size():
    q, k, v = tensors()
    q = q * 1e4
    lse = attention(q, k, v, return_lse=True).lse
    found = probabilities(q, k, lse, rows=slice(0, NQ), keys=slice(0, NK))
    assert found.isfinite().all() and found.min() >= 0


def test_sums_over_rows_hold_a_block_at_a_time(monkeypatch):
    """The matrix of 2048 rows and keys has 2**22 elements; no tensor has more than a block of 2**16."""
    monkeypatch.setattr(module, "BLOCK_SCORES", 1 << 16)
    tokens = 2048
    q, k, v = (torch.randn(1, 2, tokens, D, generator=torch.Generator().manual_seed(n)) for n in range(3))
    lse = attention(q, k, v, return_lse=True).lse
    everything = {"rows": slice(0, tokens), "keys": slice(0, tokens)}
    with LargestTensor() as seen:
        found = probabilities(q, k, lse, **everything, row_weights=torch.ones(1, tokens))
    expected = (q.double() @ k.double().mT * D**-0.5).softmax(-1).mean(1).sum(1)
    torch.testing.assert_close(found[:, 0, 0], expected.float(), rtol=1e-4, atol=1e-4)
    assert seen.numel <= 1 << 16
