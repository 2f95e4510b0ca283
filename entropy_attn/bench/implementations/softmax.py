"""How others compute entropy and maps: from the softmax matrix, at once, in chunks of rows, or stored by layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from entropy_attn.bench.implementations.contract import Ask, Implementation, Results

CHUNK_SCORES = {"cuda": 2**26, "cpu": 2**22}  # scores of one chunk: enough to keep a device busy


def materialized(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """With the complete softmax matrix; products in the dtype of the inputs, then float32. The gate compares to it."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.mT).to(wide) * query.shape[-1] ** -0.5
    if ask.task not in ("lse", "entropy"):
        p = scores.softmax(dim=-1)
        head_map = {"map": p[..., ask.map_slice].mean(dim=1)} if ask.task == "map" else {}
        return {"out": p.to(value.dtype) @ value} | head_map
    log_p = scores.log_softmax(dim=-1)
    p = log_p.exp()
    out = {"out": p.to(value.dtype) @ value}
    return out | ({"lse": scores.logsumexp(dim=-1)} if ask.task == "lse" else {"entropy": -(p * log_p).sum(dim=-1)})


def chunks(query: Tensor, key: Tensor, held: int) -> list[slice]:
    """Chunks of query rows with at most `held` scores each."""
    rows = max(1, held // (query.shape[0] * query.shape[1] * key.shape[2]))
    return [slice(start, start + rows) for start in range(0, query.shape[2], rows)]


def chunked(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """The same over chunks of rows; with a gradient, each chunk is recomputed, so that none is kept."""
    parts: list[Results] = []
    for rows in chunks(query, key, CHUNK_SCORES.get(query.device.type, 2**22)):
        tensors = (query[:, :, rows], key, value, ask)
        parts.append(
            checkpoint(materialized, *tensors, use_reentrant=False) if ask.gradient else materialized(*tensors)
        )
    return {name: torch.cat([part[name] for part in parts], dim=1 if name == "map" else 2) for name in ask.results}


def _eager(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and probabilities as in diffusers' AttnProcessor and get_attention_scores: all in one dtype."""
    q, k, v = (t.flatten(0, 1) for t in (query, key, value))
    empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    p = torch.baddbmm(empty, q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5).softmax(dim=-1)
    return (p @ v).view(*query.shape[:3], -1), p.view(*query.shape[:3], -1)


def stored(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """Attend-and-Excite: the probabilities of each layer are kept, and averaged over heads for the loss."""
    out, p = _eager(query, key, value)
    return {"out": out, "map": p[..., ask.map_slice].mean(dim=1)}


def heat_maps(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """DAAM: the probabilities of each head are added to a sum in float32; this is the part of one layer."""
    out, p = _eager(query, key, value)
    heads = p[..., ask.map_slice].float()
    return {"out": out, "map": heads.sum(dim=1) / heads.shape[1]}


CAPTURED_ROWS, CAPTURE_ROWS = 1024, 256  # rows of a chunk: the defaults of the two packages below


def captured(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """attention-map-diffusers 1.0.0, mode "fast" and heads "mean": SDPA, and later the map from queries and keys.

    These are kept on the CPU. The probabilities are computed again in float32, in chunks of rows over all keys, then
    rounded, cut to the keys of the map and averaged over heads.
    """
    out = F.scaled_dot_product_attention(query, key, value)
    q, k = (t.detach().to("cpu").to(query.device) for t in (query, key))
    keys = torch.arange(*ask.map_slice.indices(key.shape[2]), device=key.device)
    parts = []
    for start in range(0, q.shape[2], CAPTURED_ROWS):
        scores = (q[:, :, start : start + CAPTURED_ROWS].float() @ k.float().mT) * q.shape[3] ** -0.5
        p = scores.softmax(dim=-1).to(q.dtype)
        parts.append(p.index_select(-1, keys).mean(dim=1))
    return {"out": out, "map": torch.cat(parts, dim=1)}


def capturing(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    """AttLine: the softmax matrix replaces SDPA, in chunks of rows; each chunk's sum over heads goes to the CPU.

    AttLine sums over the batch and the keys of a word, too; here each entry and key keeps its map.
    """
    outs, total = [], torch.zeros(query.shape[0], query.shape[2], ask.map_slice.stop - ask.map_slice.start)
    for start in range(0, query.shape[2], CAPTURE_ROWS):
        rows = slice(start, start + CAPTURE_ROWS)
        p = (torch.matmul(query[:, :, rows], key.mT) * query.shape[3] ** -0.5).softmax(dim=-1)
        total[:, rows] += p[..., ask.map_slice].sum(dim=1).to("cpu", torch.float32)
        outs.append(p @ value)
    return {"out": torch.cat(outs, dim=2), "map": (total / query.shape[1]).to(query.device)}


SOFTMAX = (
    Implementation("materialised", materialized, ("lse", "entropy", "map"), matrices=4.0),
    Implementation("chunked", chunked, ("entropy", "map")),
    Implementation("attend-and-excite", stored, ("map",), matrices=3.0, slack=4.0),  # a mean in half precision
    Implementation("daam", heat_maps, ("map",), matrices=3.0, slack=4.0),
    Implementation("attention-map-diffusers", captured, ("map",), ("forward",), slack=4.0),
    Implementation("attline", capturing, ("map",), ("forward",), slack=4.0),  # all of it in half precision
)
