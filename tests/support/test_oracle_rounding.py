"""The rounding term of the error budget is correct, and its memory is that of one head."""

from __future__ import annotations

import math

import pytest
import torch

from entropy_attn.ops.reference import attention_reference
from tests.support.oracle import logit_rounding, make_qkv


def by_identity(query, key, value, **options):
    """The formulas written directly: P of all heads is the attention with V = 1."""
    eye = torch.eye(key.shape[2], dtype=torch.float64).expand(*key.shape[:2], -1, -1)
    p, _, entropy, _ = attention_reference(query, key, eye, **options)
    group = query.shape[1] // key.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (key, value))
    scale = options.get("scale")
    scale = torch.as_tensor(query.shape[-1] ** -0.5 if scale is None else scale).abs()
    unit = torch.finfo(torch.promote_types(query.dtype, torch.float32)).eps / 2
    change = p * unit * (query.double().abs() @ k.abs().mT) * (scale[:, None, None] if scale.dim() else scale)
    of_out = change @ v.abs() + change.sum(-1, keepdim=True) * (p @ v).abs()
    of_entropy = change * (entropy[..., None] + p.clamp_min(1e-300).log()).abs()
    of_map = (change + p * change.sum(-1, keepdim=True)).mean(1)
    return tuple(t.max().item() for t in (of_out, change.sum(-1), of_entropy.sum(-1), of_map))


KEEP = torch.rand(2, 4, 33, 47, generator=torch.Generator().manual_seed(0)) > 0.3
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": -0.3},
    "scale of each head": {"scale": torch.tensor([0.1, -0.2, 0.0, 1.5])},
    "one scale": {"scale": torch.tensor(0.4)},
    "mask": {"attn_mask": KEEP},
    "mask without heads": {"attn_mask": KEEP[:, :1]},
    "mask of keys": {"attn_mask": KEEP[0, 0, 0]},
    "mask of three axes": {"attn_mask": KEEP[0]},
    "added mask": {"attn_mask": torch.where(KEEP, 0.5, -math.inf)},
    "grouped": {"enable_gqa": True},
    "map": {"map_keys": (3, 20)},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_numbers(name, dtype):
    q, k, v = make_qkv(dtype=dtype, heads_kv=2 if name == "grouped" else None, gain=3.0)
    expected = by_identity(q, k, v, **OPTIONS[name])
    assert logit_rounding(q, k, v, **OPTIONS[name]) == pytest.approx(expected, rel=1e-12)


def test_nothing_to_round():
    q, k, v = make_qkv(1, 2, 0, 5, 16)
    assert logit_rounding(q, k, v) == (0.0,) * 4


def test_memory_grows_by_rows_times_keys():
    """With 65,536 keys, a matrix of all pairs would take 34 GB."""
    largest = 0
    q, k, v = make_qkv(1, 3, 4, 2000, 16)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return result

    with Watch():
        logit_rounding(q, k, v)
    assert largest <= 8 * max(4 * 2000, 3 * 2000 * 16)
