"""Shared by the gradient tests: random gradients, float64 autograd, and an error budget derived from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from entropy_attn.ops.reference import attention_reference, softmax_scale

GRADS = ("grad_out", "grad_lse", "grad_entropy", "grad_map")
RESULTS = ("dq", "dk", "dv", "dscale")
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # out, lse, entropy, map


def random_gradients(
    query: Tensor, key: Tensor, value: Tensor, map_keys: tuple[int, int], names: Iterable[str] = GRADS, seed: int = 1
) -> dict[str, Any]:
    """Gradients of the named outputs, as keyword arguments of `attention_backward`."""
    g = torch.Generator().manual_seed(seed)
    batch, heads, seqlen_q, _ = query.shape
    shapes = {
        "grad_out": (batch, heads, seqlen_q, value.shape[3]),
        "grad_lse": (batch, heads, seqlen_q),
        "grad_entropy": (batch, heads, seqlen_q),
        "grad_map": (batch, seqlen_q, map_keys[1] - map_keys[0]),
    }
    drawn = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    dtypes = {"grad_out": query.dtype}
    grads: dict[str, Any] = {n: drawn[n].to(query.device, dtypes.get(n, torch.float32)) for n in GRADS if n in names}
    return grads | ({"map_keys": map_keys} if "grad_map" in grads else {})


def reference_outputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    map_keys: tuple[int, int],
    *,
    factor: Tensor | None = None,
    **options: Any,
) -> Outputs:
    """The outputs of the float64 reference; with factors on the scores, those of the formula below in float64."""
    if factor is not None:
        tensors = (t.double() for t in (query, key, value))
        return same_dtype_outputs(*tensors, map_keys, factor=factor.double(), **options)
    grouped = query.shape[1] != key.shape[1]
    return attention_reference(query, key, value, enable_gqa=grouped, map_keys=map_keys, **options)


def same_dtype_outputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    map_keys: tuple[int, int],
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    factor: Tensor | None = None,
) -> Outputs:
    """What a user would write in torch: products in the inputs' dtype, softmax and statistics in float32 or wider.

    `factor`, which broadcasts to (B, H, Nq, Nk), is one on the scores besides the scale.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    s = (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32)) * softmax_scale(scale, query)
    s = s if factor is None else s * factor
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else s + attn_mask
    if is_causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril(), -math.inf)
    empty = (s == -math.inf).all(-1, keepdim=True)
    log_p = s.masked_fill(empty, 0.0).log_softmax(-1)  # the softmax of a row of -inf is NaN, and so is its gradient
    p = log_p.exp().masked_fill(empty, 0.0)
    entropy = -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)
    lse = s.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0], -math.inf)
    return p.to(value.dtype) @ value, lse, entropy, p.mean(1)[..., slice(*map_keys)]


def dense_table(values: Tensor | None, rows: tuple[int, int] | None, seqlen_q: int, neutral: float) -> Tensor | None:
    """A table of keys (B or 1, H or 1, 1, Nk) for some queries, as (B or 1, H or 1, Nq, Nk)."""
    if values is None:
        return None
    of_query = torch.full((*values.shape[:2], seqlen_q, values.shape[3]), neutral, device=values.device)
    of_query[:, :, slice(*(rows or (None, None)))] = values.float()
    return of_query


def with_tables(
    attn_mask: Tensor | None, seqlen_q: int, *, key_scale: Tensor | None, key_bias: Tensor | None,
    key_rows: tuple[int, int] | None,
) -> dict[str, Tensor | None]:  # fmt: skip
    """The mask and the factor that stand for a mask and tables of keys, as options of `assert_gradients_match`."""
    factor, bias = dense_table(key_scale, key_rows, seqlen_q, 1.0), dense_table(key_bias, key_rows, seqlen_q, 0.0)
    if attn_mask is not None and bias is not None:
        bias = torch.where(attn_mask, bias, -math.inf) if attn_mask.dtype == torch.bool else attn_mask.float() + bias
    return {"attn_mask": attn_mask if bias is None else bias, "factor": torch.ones(()) if factor is None else factor}


def gradients(
    outputs: Callable[..., Outputs], dtype: torch.dtype | None, query: Tensor, key: Tensor, value: Tensor,
    grads: dict[str, Any], scale: float | Tensor | None, **options: Any,
) -> list[Tensor]:  # fmt: skip
    """dq, dk, dv and, for a tensor scale, dscale by autograd, in `dtype`, or in the dtype of each tensor if None."""
    inputs = [query, key, value, *([scale] if isinstance(scale, Tensor) else [])]
    inputs = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    grads = dict(grads)
    map_keys = grads.pop("map_keys", (0, 0))
    results = outputs(*inputs[:3], map_keys, scale=inputs[3] if len(inputs) > 3 else scale, **options)
    chosen = [(r, grads[name].to(r.dtype)) for name, r in zip(GRADS, results, strict=True) if name in grads]
    outs, grad_outs = zip(*chosen, strict=True)
    return list(torch.autograd.grad(outs, inputs, grad_outs, allow_unused=True, materialize_grads=True))


def gradient_rounding(
    query: Tensor, key: Tensor, value: Tensor, truth: list[Tensor], grads: dict[str, Any], **options: Any
) -> list[float]:
    """The largest change of each gradient if the inputs of every backward pass are rounded once.

    These inputs are the logits, where near ties amplify rounding so much that the error of a single computation is
    luck; lse, which scales P and thereby all contributions of a row; and out, lse and entropy in the sum over a row
    that dS subtracts, and the order of this sum: a change of it acts like a gradient of lse.
    """
    group = query.shape[1] // key.shape[1]
    scale = softmax_scale(options.get("scale"), query)
    scale = scale.double().abs() if isinstance(scale, Tensor) else abs(scale)
    unit = torch.finfo(torch.promote_types(query.dtype, torch.float32)).eps / 2
    size = scale * (query.double().abs() @ key.double().abs().repeat_interleave(group, dim=1).mT)
    if options.get("factor") is not None:
        size = size * options["factor"].double().abs()
    map_keys = grads.get("map_keys", (0, 0))
    out, lse, entropy, _ = reference_outputs(query, key, value, map_keys, **options)
    lse = lse.masked_fill(lse == -math.inf, 0.0)
    mask = options.pop("attn_mask", None)
    if mask is not None and mask.dtype != torch.bool:
        size = size + mask.double().abs().masked_fill(mask == -math.inf, 0.0)
    elif mask is not None:
        mask = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device).masked_fill(~mask, -math.inf)
    moved = [0.0] * len(truth)
    few = any(
        t.numel() <= 16 for t in truth
    )  # the gradient of a scale: a single number may not change in the first draws
    draws = 8 if few else 2
    for seed in range(draws + 1):
        g = torch.Generator().manual_seed(seed)
        noise = unit * size * _signs(size, g) + (0 if mask is None else mask.double())
        # the last draw has the same sign in every row, like the rounding of the constant that converts the unit of lse
        of_lse = _signs(lse, g) if seed < draws else torch.ones_like(lse)
        of_row = unit * lse.abs() * of_lse
        changed = {n: t if n == "map_keys" else t.double() for n, t in grads.items()}
        delta = torch.zeros_like(lse)
        if "grad_out" in grads:
            changed["grad_out"] = changed["grad_out"] * (1 + of_row[..., None])
            rounded = torch.finfo(query.dtype).eps / 2 * out * _signs(out, g)
            delta += (grads["grad_out"].double() * rounded).sum(-1)
            # The order of its terms and of those of dP: torch's formula happens to give dP - delta = 0 for rows with
            # one key. One rounding of the sum of magnitudes for each of the two; the budget has 4 times this.
            magnitudes = (grads["grad_out"].double() * out).abs().sum(-1)
            delta += unit / 2 * magnitudes * _signs(magnitudes, g)
        if "grad_entropy" in grads:
            changed["grad_entropy"] = changed["grad_entropy"] * (1 + of_row)
            # twice for lse, which is stored in nats and read in base 2; for rows with one key, nothing else is left
            delta += unit * grads["grad_entropy"].double() * (entropy + 2 * lse.abs()) * of_lse
        if "grad_map" in grads:
            changed["grad_map"] = changed["grad_map"] * (1 + of_row[:, 0, :, None])
        changed["grad_lse"] = changed.get("grad_lse", 0.0) * (1 + of_row) + delta
        found = gradients(reference_outputs, torch.float64, query, key, value, changed, attn_mask=noise, **options)
        moved = [max(m, (f - t).abs().max().item()) for m, f, t in zip(moved, found, truth, strict=True)]
    return moved


def _signs(t: Tensor, generator: torch.Generator) -> Tensor:
    """1 or -1 for each element, the same on every device."""
    return (torch.randint(0, 2, t.shape, generator=generator) * 2 - 1).to(t)


def assert_gradients_match(
    actual: tuple[Tensor | None, ...], query: Tensor, key: Tensor, value: Tensor, grads: dict[str, Any], **options: Any
) -> dict[str, tuple[float, float]]:
    """Largest error <= 2 * the largest error of torch in the same dtype + rounding; what is None is not compared.

    Returns `(error, budget)` of each compared gradient.
    """
    options.setdefault("scale", None)
    map_keys = grads.get("map_keys")
    truth = gradients(reference_outputs, torch.float64, query, key, value, grads, **options)
    same = gradients(same_dtype_outputs, None, query, key, value, grads, **options)
    moved = gradient_rounding(query, key, value, truth, grads, **options)
    if "grad_out" in grads:
        # The error of dV, a sum over queries, depends on the order of its terms; torch's order happens to be a good
        # one. As for the logits, allow one rounding of the sum of their magnitudes.
        positive = {"grad_out": grads["grad_out"].abs()} | ({"map_keys": map_keys} if map_keys else {})
        magnitudes = gradients(reference_outputs, torch.float64, query, key, value, positive, **options)[2]
        moved[2] += magnitudes.abs().max().item() * torch.finfo(torch.float32).eps / 8  # the budget has 4 times this
    compared = {}
    for name, a, t, s, m in zip(RESULTS, actual, truth, same, moved, strict=False):
        if a is None:
            continue
        assert a.shape == t.shape, f"{name}: shape {tuple(a.shape)}, expected {tuple(t.shape)}"
        assert a.isfinite().all(), f"{name}: not finite"
        eps = torch.finfo(a.dtype).eps
        rounding = 4 * m + 2 * eps * t.abs().max().item() + torch.finfo(a.dtype).smallest_normal * eps
        budget = 2 * (s - t).abs().max().item() + rounding
        error = (a - t).abs().max().item()
        assert error <= budget, f"{name}: error {error:.3g} above the budget {budget:.3g}"
        compared[name] = error, budget
    return compared
