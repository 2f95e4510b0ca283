"""Checks of masks and NaN that every implementation has to pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import entropy_attn as ea
from entropy_attn.ops.reference import attention_reference
from tests.support.oracle import assert_matches_oracle, make_qkv

MIN, INF = torch.finfo(torch.float32).min, math.inf
MAP = (0, 3)
STATISTICS = {"return_lse": True, "return_entropy": True}
ROWS = {  # rows of masks that models pass, for 6 keys
    "least": [MIN] * 6,
    "two levels": [-1e30, -1e30, -1e30, MIN, MIN, MIN],
    "three levels": [-1e30, -3e38, MIN, -1e30, -INF, MIN],
    "least and none": [MIN, MIN, -INF, -INF, -INF, -INF],
    "none and least": [-INF, -INF, -INF, -INF, MIN, MIN],
    "largest": [-MIN, -MIN, 0.0, MIN, -INF, 1.0],
    "least and some": [MIN, 0.5, -0.5, MIN, 0.0, -INF],
    "none": [-INF] * 6,
    "one": [-INF, -INF, -INF, MIN, -INF, -INF],
    "beyond half": [-7e4, -14e4, -14e4, -14e4, -7e4, -14e4],
    "above half": [1e5, 0.0, 0.0, 0.0, 1e5, 0.0],
}


def large_mask(keys: int, device: str) -> Tensor:
    """One row for each of ROWS, with its six values spread over the keys; the last may fill a block of keys."""
    levels = torch.tensor(list(ROWS.values()), device=device)
    return levels[:, (torch.arange(keys, device=device) * 6) // keys]


def check_large_masks(impl: str, device: str, dtype: torch.dtype, keys: int) -> None:
    """Results and map of rows with values up to the limits of float32, against float64."""
    mask = large_mask(keys, device)
    q, k, v = make_qkv(1, 2, len(mask), keys, 16, dtype=dtype, device=device)
    plain = ea.attention(q, k, v, attn_mask=mask, impl=impl)
    r = ea.attention(q, k, v, attn_mask=mask, **STATISTICS, map_keys=MAP, impl=impl)
    truth = attention_reference(q, k, v, attn_mask=mask, map_keys=MAP)
    for i, row in enumerate(ROWS):
        atol = 2e-3 if dtype == torch.float16 else 2e-6
        if row.endswith("half"):  # next to 7e4, float32 represents a logit to a hundredth
            atol = 2e-2
        for name, a, t in zip(("out", "lse", "entropy", "map"), r[:4], truth, strict=True):
            a, t = (x.select(1 if name == "map" else 2, i).to(a.dtype) for x in (a, t))
            where = f"{row}, {name}: "
            torch.testing.assert_close(a, t, rtol=1e-6, atol=atol, msg=lambda text, where=where: where + text)
        torch.testing.assert_close(plain.out[:, :, i], r.out[:, :, i], rtol=1e-3, atol=atol)
    two = list(ROWS).index("two levels")
    torch.testing.assert_close(r.lse[..., two], torch.full_like(r.lse[..., two], -1e30))


def check_gradients_beside_large_masks(impl: str, device: str, compiled: bool = False) -> None:
    exact = torch.tensor([not row.endswith("half") for row in ROWS], device=device)
    mask = large_mask(12, device)[exact]
    tensors = make_qkv(1, 2, len(mask), 12, 16, device=device)

    def loss(q, k, v, impl=impl):
        r = ea.attention(q, k, v, attn_mask=mask, **STATISTICS, map_keys=MAP, impl=impl)
        lse = r.lse.masked_fill(r.lse.abs() > 1e4, 0.0)
        return r.out.square().sum() + r.entropy.square().sum() + r.map.square().sum() + 1e-3 * lse.square().sum()

    found = []
    for function in (torch.compile(loss, backend="aot_eager") if compiled else loss, lambda *t: loss(*t, "reference")):
        leaves = [t.detach().requires_grad_() for t in tensors]
        found.append(torch.autograd.grad(function(*leaves), leaves))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


SOURCES = ("query", "key", "masked key", "value", "mask", "scale")


def check_nan(impl: str, device: str, keys: int, sources: tuple[str, ...] = SOURCES) -> None:
    """A NaN makes only the results NaN that depend on it, and a row without keys has its documented results."""
    keep = torch.ones(5, keys, dtype=torch.bool, device=device)
    keep[:, 3], keep[4] = False, False
    added = torch.zeros(5, keys, device=device).masked_fill(~keep, -INF)
    for source in sources:
        q, k, v = make_qkv(1, 2, 5, keys, 16, device=device)
        {"query": q, "key": k, "masked key": k, "value": v}.get(source, torch.empty(1, 2, 5, 1))[
            0, 0, 3 if source == "masked key" else 1, 0
        ] = math.nan
        bias = added.clone()
        if source == "mask":
            bias[1, 1] = math.nan
        scale = torch.tensor([0.3, math.nan if source == "scale" else 0.2], device=device)
        if source == "scale" and device == "cpu":  # on other devices, the host would have to wait for the value
            with pytest.raises(ValueError, match="scale: expected finite numbers"):
                ea.attention(q, k, v, scale=scale, **STATISTICS, impl=impl)
            continue
        for mask in (None, keep, bias) if source != "mask" else (bias,):
            for map_keys in (None, (0, keys)):
                options = {"attn_mask": mask, "scale": scale}
                r = ea.attention(q, k, v, **options, **STATISTICS, map_keys=map_keys, impl=impl)
                truth = attention_reference(q, k, v, **options, map_keys=map_keys)
                for name, a, t in zip(("out", "lse", "entropy", "map"), r[:4], truth, strict=True):
                    if a is not None:
                        torch.testing.assert_close(
                            a, t.to(a.dtype), rtol=1e-4, atol=1e-5, equal_nan=True,
                            msg=lambda text, where=f"{source}, {name}": f"{where}: {text}",
                        )  # fmt: skip
                reached = {"query": 1, "mask": 1, "key": slice(0, 4), "scale": slice(0, 4)}.get(source)
                if reached is not None:
                    head = 1 if source == "scale" else 0
                    assert r.entropy[0, head, reached].isnan().all() and r.lse[0, head, reached].isnan().all()
                    assert r.out[0, head, reached].isnan().all()
                if mask is not None and source != "value":
                    assert r.entropy[:, :, 4].eq(0).all() and r.lse[:, :, 4].eq(-INF).all()


SHAPES = ((), (7,), (5, 7), (3, 1, 7), (2, 1, 1, 1), (1, 7), (5, 1), (1, 1, 5, 7), (2, 3, 5, 7))


def check_mask_ranks_and_dtypes(impl: str, device: str, dtypes: tuple[torch.dtype, ...], shapes=SHAPES) -> None:
    """The same result with and without statistics, for masks of any rank and dtype."""
    q, k, v = make_qkv(2, 3, 5, 7, 16, device=device)
    for shape in shapes:
        base = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device)
        for mask in (base > -0.5, *(base.to(dtype) for dtype in dtypes)):
            plain = ea.attention(q, k, v, attn_mask=mask, impl=impl)
            r = ea.attention(q, k, v, attn_mask=mask, **STATISTICS, map_keys=MAP, impl=impl)
            assert_matches_oracle(r, q, k, v, attn_mask=mask, map_keys=MAP)
            assert_matches_oracle(plain, q, k, v, attn_mask=mask)


GROUPS = ((2, 4), (4, 1), (1, 4), (4, 2), (2, 1))


def check_grouped_heads_that_differ(impl: str, device: str, groups: tuple[tuple[int, int], ...] = GROUPS) -> None:
    """Key and value may have different numbers of heads, in results and in gradients."""
    for heads_k, heads_v in groups:
        q, k, _ = make_qkv(1, 4, 5, 7, 16, heads_kv=heads_k, device=device)
        v = make_qkv(1, 4, 5, 7, 16, heads_kv=heads_v, device=device)[2]
        wide = (q, *(t.repeat_interleave(4 // t.shape[1], 1) for t in (k, v)))
        assert_matches_oracle(ea.attention(q, k, v, enable_gqa=True, impl=impl), *wide)
        r = ea.attention(q, k, v, enable_gqa=True, **STATISTICS, map_keys=MAP, impl=impl)
        assert_matches_oracle(r, *wide, map_keys=MAP)
        found = []
        for each in (impl, "reference"):
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            r = ea.attention(*leaves, enable_gqa=True, return_entropy=True, impl=each)
            found.append(torch.autograd.grad(r.out.square().sum() + r.entropy.sum(), leaves))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
