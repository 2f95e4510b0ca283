"""Shared by the attention tests: random calls, float64 results, and an error budget derived from the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from entropy_attn.ops.reference import attention_reference

NAMES = ("out", "lse", "entropy", "map")


def make_qkv(
    batch: int = 2,
    heads: int = 4,
    seqlen_q: int = 33,
    seqlen_k: int = 47,
    head_dim: int = 40,
    *,
    heads_kv: int | None = None,
    head_dim_v: int | None = None,
    dtype: torch.dtype = torch.float32,
    gain: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value, the same on every device; the logits have a standard deviation of about `gain`."""
    g = torch.Generator().manual_seed(seed)
    heads_kv = heads if heads_kv is None else heads_kv
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    shapes = ((heads, seqlen_q, head_dim), (heads_kv, seqlen_k, head_dim), (heads_kv, seqlen_k, head_dim_v))
    query, key, value = (torch.randn(batch, *shape, generator=g, dtype=torch.float64) for shape in shapes)
    return tuple(t.to(device, dtype).requires_grad_(requires_grad) for t in (query * gain, key, value))


def torch_same_dtype(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
    map_keys: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What a user would write in torch: products in the inputs' dtype, softmax and statistics in float32 or wider."""
    if enable_gqa:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scale = scale[..., None, None] if isinstance(scale, Tensor) and scale.dim() else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    s = (query @ key.mT).to(wide) * scale
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else s + attn_mask
    if is_causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril(), -math.inf)
    log_p = s.log_softmax(dim=-1)
    p = log_p.exp().nan_to_num(0.0)
    entropy = -(p * log_p.nan_to_num(0.0, neginf=0.0)).sum(dim=-1)
    head_mean = None if map_keys is None else p[..., slice(*map_keys)].mean(dim=1)
    return p.to(value.dtype) @ value, s.logsumexp(dim=-1), entropy, head_mean


def logit_rounding(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[float, float, float, float]:
    """The largest changes of (out, lse, entropy, map) if each product in QK^T is rounded once.

    Rows with two nearly equal large logits amplify rounding so much that the error of a single computation is luck.
    With P from float64, a change d of logit j changes out by P_j (v_j - out) d, lse by P_j d, entropy by
    P_j (H + ln P_j) d, and the P_i of a map by P_i (1_ij - P_j) d.
    """
    # One head at a time, whose map is its P: the matrices of all heads would need too much memory.
    by_head = [_logit_rounding_of(h, query, key, value, **options) for h in range(query.shape[1])]
    *largest, of_map = zip(*by_head, strict=True)
    return *(max(each) for each in largest), _largest(sum(of_map) / query.shape[1])


def _logit_rounding_of(
    head: int, query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[float, float, float, Tensor]:
    """The same for one head; for the map, the change of every element, because maps are averaged over heads."""

    def pick(t: Tensor) -> Tensor:
        return t[:, head * t.shape[1] // query.shape[1]][:, None]

    q, k, v = map(pick, (query, key, value))
    mask, scale = options.get("attn_mask"), options.get("scale")
    if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
        mask = mask[..., head : head + 1, :, :]
    if isinstance(scale, Tensor) and scale.dim():
        scale = scale[..., [min(head, scale.shape[-1] - 1)]]
    given = {**options, "attn_mask": mask, "scale": scale, "enable_gqa": False, "map_keys": (0, key.shape[2])}
    out, _, entropy, p = attention_reference(q, k, v, **given)
    out, entropy = out[:, 0], entropy[:, 0]  # p is [B, Nq, Nk]
    q, k, v = (t[:, 0].double() for t in (q, k, v))
    scale = torch.as_tensor(query.shape[-1] ** -0.5 if scale is None else scale).abs()[..., None]
    unit = torch.finfo(torch.promote_types(query.dtype, torch.float32)).eps / 2
    change = p * unit * (q.abs() @ k.abs().mT) * scale
    total = change.sum(-1, keepdim=True)
    of_out = change @ v.abs() + total * out.abs()
    of_entropy = (change * (entropy[..., None] + p.clamp_min(1e-300).log()).abs()).sum(-1)
    return _largest(of_out), _largest(total), _largest(of_entropy), change + p * total


def _largest(t: Tensor) -> float:
    return t.max().item() if t.numel() else 0.0


def assert_within_budget(
    actual: Tensor, truth: Tensor, same_dtype: Tensor, moved: float, name: str
) -> tuple[float, float]:
    """Largest error <= 2 * the largest error of torch in the same dtype + rounding; infinities must agree.

    Returns `(error, budget)`.
    """
    assert actual.shape == truth.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    assert not actual.isnan().any(), f"{name}: NaN"
    infinite = truth.isinf()
    assert torch.equal(actual[infinite].double(), truth[infinite]), f"{name}: infinities differ"
    if infinite.all():
        return 0.0, 0.0
    actual, truth, same_dtype = actual[~infinite], truth[~infinite], same_dtype[~infinite]
    rounding = moved + 2 * torch.finfo(actual.dtype).eps * max(1.0, truth.abs().max().item())
    if actual.dtype == truth.dtype:
        rounding *= 8  # the reference has the same precision, and the rounding error of its sums
    budget = 2 * (same_dtype - truth).abs().max().item() + rounding
    error = (actual - truth).abs().max().item()
    assert error <= budget, f"{name}: error {error:.3g} above the budget {budget:.3g}"
    return error, budget


def assert_matches_oracle(
    actual: tuple[Tensor | None, ...], query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> dict[str, tuple[float, float]]:
    """`(out, lse, entropy, map)` within the budget; others, and statistics that are None or missing, are not compared.

    Returns `(error, budget)` of each compared result.
    """
    actual = (*actual, *(None,) * (len(NAMES) - len(actual)))[: len(NAMES)]
    with torch.no_grad():
        truth = attention_reference(query, key, value, **options)
        same_dtype = torch_same_dtype(query, key, value, **options)
        moved = logit_rounding(query, key, value, **options)
    results = zip(NAMES, actual, truth, same_dtype, moved, strict=True)
    return {name: assert_within_budget(a.detach(), t, s, m, name) for name, a, t, s, m in results if a is not None}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that torch allocates without initialization is NaN, so that reading it before it is written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
