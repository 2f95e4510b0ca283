"""Float64 results and budgets of calls with a factor and a bias by key, and with all statistics of rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from entropy_attn.kernels.common.call import AllResults, AttentionCall
from entropy_attn.ops.reference import all_results, by_query, softmax_scale
from tests.support.oracle import assert_within_budget


def assert_all_match(actual: AllResults, call: AttentionCall) -> dict[str, tuple[float, float]]:
    """Every result that is there, within the budget of torch in the same dtype: `(error, budget)` of each."""
    with torch.no_grad():
        truth = all_results(call, enable_gqa=call.grouped)
        same, moved = _in_torch(call), _rounding(call, truth)
    judged = {}
    for name, found, t, s in zip(AllResults._fields, actual, truth, same, strict=True):
        if found is not None:
            assert t is not None and s is not None
            judged[name] = assert_within_budget(found.detach(), t, s, moved[name], name)
    return judged


def logits(call: AttentionCall, dtype: torch.dtype, products: Tensor) -> Tensor:
    """scale * f_j * (q_i . k_j) + b_j + mask_ij; -inf where the key is not attended."""
    scale = softmax_scale(call.scale, call.query)
    s = products.to(dtype) * (scale.to(dtype) if isinstance(scale, Tensor) else scale)
    rows, seqlen_q = call.key_rows, s.shape[2]
    if call.key_scale is not None:
        s = s * by_query(call.key_scale.to(dtype), rows, seqlen_q, 1.0)
    if call.key_bias is not None:
        s = s + by_query(call.key_bias.to(dtype), rows, seqlen_q, 0.0)
    mask = call.attn_mask
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask.to(dtype)
    if call.is_causal:
        s = s.masked_fill(~torch.ones(s.shape[2:], dtype=torch.bool, device=s.device).tril(), -math.inf)
    return s


def _in_torch(call: AttentionCall) -> AllResults:
    """What a user would write: products in the inputs' dtype, softmax and statistics in float32."""
    q, k, v = call.query, *_every_head(call)
    s = logits(call, torch.float32, q @ k.mT)
    log_p = s.log_softmax(-1)
    p = log_p.exp().nan_to_num(0.0)
    finite = s.masked_fill(s == -math.inf, 0.0)
    x = finite - finite.amax(-1, keepdim=True)
    mean = (p * x).sum(-1, keepdim=True)
    return AllResults(
        p.to(v.dtype) @ v,
        s.logsumexp(-1),
        -(p * log_p.nan_to_num(0.0, neginf=0.0)).sum(-1),
        None if call.map_keys is None else p[..., slice(*call.map_keys)].mean(1),
        (p * (x - mean).square()).sum(-1).nan_to_num(0.0),
        s.amax(-1),
        None if call.mass_keys is None else p[..., slice(*call.mass_keys)].sum(-1),
    )


def _rounding(call: AttentionCall, truth: AllResults) -> dict[str, float]:
    """The largest change of each result if every product in QK^T and every logit is rounded once.

    Rows with nearly equal large logits amplify rounding so much that the error of a single computation is luck.
    """
    q, (k, v) = call.query.double(), (t.double() for t in _every_head(call))
    s = logits(call, torch.float64, q @ k.mT)
    p = torch.softmax(s, -1).nan_to_num(0.0)
    finite = s.masked_fill(s == -math.inf, 0.0)
    scale = softmax_scale(call.scale, q)
    factor = scale.double().abs() if isinstance(scale, Tensor) else abs(scale)
    size = (q.abs() @ k.abs().mT) * factor
    if call.key_scale is not None:
        size = size * by_query(call.key_scale.double().abs(), call.key_rows, s.shape[2], 1.0)
    change = torch.finfo(torch.float32).eps * (size + finite.abs()).masked_fill(s == -math.inf, 0.0)
    mean = (p * finite).sum(-1, keepdim=True)
    log_p = p.clamp_min(1e-300).log()
    spread = (finite - mean).square() - truth.variance[..., None]

    def of(gradient: Tensor) -> float:
        found = (gradient.abs() * change).sum(-1).nan_to_num(0.0)
        return found.max().item() if found.numel() else 0.0

    inside = torch.zeros(s.shape[-1], device=s.device, dtype=torch.float64)
    if call.mass_keys is not None:
        inside[slice(*call.mass_keys)] = 1.0
    total = (p * change).sum(-1, keepdim=True)
    of_out = (p * change) @ v.abs() + total * truth.out.abs()
    of_map = p * change + p * total
    return {
        "out": of_out.max().item() if of_out.numel() else 0.0,
        "lse": of(p),
        "entropy": of(p * (truth.entropy[..., None] + log_p)),
        "map": of_map.max().item() if of_map.numel() else 0.0,
        "variance": of(p * spread),
        "max": change.max().item() if change.numel() else 0.0,
        "mass": of(p * (inside - (p * inside).sum(-1, keepdim=True))),
    }


def _every_head(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Key and value with a head for each head of the query."""
    heads = call.query.shape[1]
    key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (call.key, call.value))
    return key, value
