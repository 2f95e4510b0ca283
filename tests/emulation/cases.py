"""One call as a line of text, run on an emulated card and compared with float64."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_attn.kernels.backward import launch as launch_backward
from entropy_attn.kernels.common import support
from entropy_attn.kernels.common.call import AttentionCall
from entropy_attn.kernels.common.targets import INTERPRETER
from entropy_attn.kernels.forward import launch
from entropy_attn.kernels.forward.configs import ForwardConfig, forward_candidates
from entropy_attn.kernels.maps import launch as launch_maps
from entropy_attn.kernels.pingpong import launch as pingpong
from tests.support.oracle import assert_matches_oracle
from tests.support.oracle_gradients import GRADS, assert_gradients_match, random_gradients, with_tables
from tests.support.oracle_rows import assert_all_match

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
MASKS = ("none", "bool", "keys", "added", "excluding")
LAYOUTS = ("bhnd", "bnhd", "packed", "padded", "offset")
SCALES = ("default", "negative", "zero", "one", "heads", "samples")
TABLES = ("none", "scale", "bias", "both", "excluding")  # a factor and a bias by key
SCHEDULES = ("plain", "rotated", "specialized", "pingpong")


@dataclass(frozen=True)
class Case:
    """One call of the kernels; `str` writes the line that `parse` reads."""

    target: str = "sm_80"
    dtype: str = "fp16"
    batch: int = 1
    heads: int = 2
    heads_kv: int = 2
    seqlen_q: int = 70
    seqlen_k: int = 133
    head_dim: int = 64
    head_dim_v: int = 64
    layout: str = "bhnd"
    mask: str = "none"
    causal: bool = False
    scale: str = "default"
    map_start: int = 0
    map_stop: int = 0  # 0: no map
    tables: str = "none"
    some_rows: bool = False  # the tables are for some of the queries
    of_rows: bool = False  # variance, maximum and mass as well
    grads: str = ""  # names joined by +, such as "grad_out+grad_map"; empty: no backward pass
    schedule: str = "plain"
    groups: int = 0  # of warps that compute, for "pingpong"; 0: as in autotuning's first candidate
    seed: int = 0

    def __str__(self) -> str:
        given = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        return " ".join(f"{name}={value}" for name, value, default in given if value != default or name == "target")

    @classmethod
    def parse(cls, line: str) -> Case:
        kinds = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for word in line.split():
            name, _, text = word.partition("=")
            if name not in kinds:
                raise ValueError(f"expected {', '.join(kinds)}, got {name!r}")
            values[name] = text == "True" if kinds[name] is bool else kinds[name](text)
        return cls(**values)


def tensors(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value in the layout of the case; gaps in memory are NaN."""
    g = torch.Generator().manual_seed(case.seed)
    dtype = DTYPES[case.dtype]
    q = torch.randn(case.batch, case.heads, case.seqlen_q, case.head_dim, generator=g, dtype=torch.float64)
    k = torch.randn(case.batch, case.heads_kv, case.seqlen_k, case.head_dim, generator=g, dtype=torch.float64)
    v = torch.randn(case.batch, case.heads_kv, case.seqlen_k, case.head_dim_v, generator=g, dtype=torch.float64)
    return tuple(laid_out(t.to(device, dtype), case.layout) for t in (q, k, v))


def laid_out(t: Tensor, layout: str) -> Tensor:
    batch, heads, seqlen, width = t.shape
    if layout == "bhnd":
        return t.contiguous()
    if layout == "bnhd":
        return t.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "packed":  # one of three in a tensor, like the result of a fused projection
        packed = t.new_full((batch, seqlen, 3, heads, width), math.nan)
        return packed[:, :, 1].copy_(t.transpose(1, 2)).transpose(1, 2)
    if layout == "padded":  # rows are padded and not aligned
        return t.new_full((batch, heads, seqlen + 1, width + 3), math.nan)[:, :, :seqlen, :width].copy_(t)
    flat = t.new_full((t.numel() + 1,), math.nan)  # starts one element after an aligned address
    return flat[1:].view(t.shape).copy_(t)


def options(case: Case, device: str = "cpu") -> dict[str, Any]:
    """Mask, causality and scale, as arguments of the launch functions."""
    g = torch.Generator().manual_seed(case.seed + 1)
    given: dict[str, Any] = {"is_causal": case.causal}
    size = (1 if case.mask == "keys" else case.seqlen_q, case.seqlen_k)
    keep = torch.rand(case.batch, 1, *size, generator=g) > 0.3
    if case.mask in ("bool", "keys"):
        given["attn_mask"] = keep
    elif case.mask == "added":
        given["attn_mask"] = torch.randn(keep.shape, generator=g).to(DTYPES[case.dtype])
    elif case.mask == "excluding":
        keep[..., 0, :] = False  # a row without keys
        given["attn_mask"] = torch.zeros(keep.shape, dtype=DTYPES[case.dtype]).masked_fill(~keep, -math.inf)
    numbers = {"negative": -0.3, "zero": 0.0, "one": torch.tensor(0.2)}
    if case.scale == "heads":
        given["scale"] = torch.linspace(-0.2, 0.4, case.heads)
    elif case.scale == "samples":
        given["scale"] = torch.linspace(-0.2, 0.4, case.batch * case.heads).view(case.batch, case.heads)
    elif case.scale in numbers:
        given["scale"] = numbers[case.scale]
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}


def tables(case: Case, device: str = "cpu") -> dict[str, Any]:
    """Factors and biases by key, as arguments of an `AttentionCall`."""
    g = torch.Generator().manual_seed(case.seed + 3)
    factor = 1.0 + 0.5 * torch.randn(case.batch, case.heads, 1, case.seqlen_k, generator=g)
    bias = torch.randn(1, case.heads, 1, case.seqlen_k, generator=g).to(DTYPES[case.dtype])
    if case.tables == "excluding":
        bias[..., : case.seqlen_k // 2] = -math.inf
        bias[:, 0] -= 1e4
    given: dict[str, Any] = {}
    if case.tables in ("scale", "both"):
        given["key_scale"] = factor.to(device)
    if case.tables in ("bias", "both", "excluding"):
        given["key_bias"] = bias.to(device)
    if given and case.some_rows:
        given["key_rows"] = (case.seqlen_q // 3, (2 * case.seqlen_q + 2) // 3)
    return given


def run(case: Case, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """Error and budget of each result, computed on the emulated card, in Triton's interpreter, or on a GPU.

    Raises:
        Finding: the emulated card found a fault.
        AssertionError: a result is not within its budget.
    """
    q, k, v = tensors(case, device)
    given = options(case, device)
    config = schedule(case, launch_config(case, q, k, v, given)) if case.schedule != "plain" else None
    statistics = {"return_lse": True, "return_entropy": True}
    map_keys = (case.map_start, case.map_stop) if case.map_stop else None
    call = AttentionCall(q, k, v, **given, **statistics, map_keys=map_keys, **tables(case, device))
    if case.of_rows:
        call.return_variance, call.return_max = True, True
        call.mass_keys = (case.seqlen_k // 3, (2 * case.seqlen_k + 3) // 3)
    if map_keys is None:
        results = launch.attention_forward_all(call, config=config)
    else:
        results = launch_maps.attention_forward_with_map_all(call)
    grouped = {"enable_gqa": True} if case.heads != case.heads_kv else {}
    if call.key_groups or call.row_statistics:
        judged = assert_all_match(results, call)
    else:
        of_map = {"map_keys": map_keys} if map_keys else {}
        judged = assert_matches_oracle(results[:4], q, k, v, **given, **grouped, **of_map)
    if case.grads:
        names = case.grads.split("+")
        grads = random_gradients(q, k, v, map_keys or (0, case.seqlen_k), names, case.seed + 2)
        needs = (True, True, True, isinstance(given.get("scale"), Tensor))
        call.map_keys = grads.get("map_keys")
        grads_only = {name: grads[name] for name in names}
        actual = launch_backward.attention_backward(call, *results[:3], **grads_only, needs=needs)
        if call.key_groups:
            of_keys = {"key_scale": call.key_scale, "key_bias": call.key_bias, "key_rows": call.key_rows}
            given |= with_tables(call.attn_mask, case.seqlen_q, **of_keys)
        judged |= assert_gradients_match(actual, q, k, v, grads, **given)
    return judged


def launch_config(case: Case, q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> ForwardConfig:
    """The configuration that the table has for the call of a case."""
    return launch.ForwardCall(AttentionCall(q, k, v, **given), q, None, None, case.target).table_config()


def schedule(case: Case, config: ForwardConfig) -> ForwardConfig:
    """The configuration with the schedule of the case, and with tiles that this schedule can divide among warps."""
    if case.schedule == "pingpong":
        return pingpong_config(case)
    warps = 4 if case.schedule == "specialized" else config.num_warps
    registers = None if case.schedule == "specialized" else config.max_registers
    tiles = {"block_m": 128, "block_n": 64, "descriptors": True, "schedule": case.schedule}
    return dataclasses.replace(config, **tiles, num_warps=warps, max_registers=registers)


def pingpong_config(case: Case) -> ForwardConfig:
    """A candidate of autotuning."""
    candidates = forward_candidates(case.target, case.head_dim, case.head_dim_v, DTYPES[case.dtype], seqlen_k=4096)
    found = (c for c in candidates if c.schedule == "pingpong")
    return next(c for c in found if case.groups in (0, c.tiles.groups))


def refused(case: Case, device: str = "cpu") -> list[str]:
    """Why the kernels refuse a case; empty if they do not."""
    q, k, v = tensors(case, device)
    given = options(case, device)
    mask = given.get("attn_mask")
    call = AttentionCall(q, k, v, attn_mask=mask, is_causal=case.causal, **tables(case, device))
    call.return_variance = case.of_rows
    reasons = support.unsupported_reasons(call)
    if case.schedule == "pingpong":
        reasons += pingpong.unsupported_reasons(call, case.target)
    if mask is not None and case.causal:
        reasons.append("a mask and causality exclude each other")
    if case.schedule != "plain" and case.target not in (INTERPRETER, "sm_90"):
        reasons.append(f"the schedules are for sm_90, not for {case.target}")
    if case.grads and call.row_statistics:
        reasons.append("the kernels have no gradient of the variance, the maximum and the mass")
    if case.schedule == "specialized" and call.key_groups:
        reasons.append("warps that only compute load nothing by pointer")
    if case.grads:
        reasons += support.backward_unsupported(
            case.target, case.head_dim, case.head_dim_v, q.dtype, has_mask=mask is not None or call.key_groups,
            has_map="grad_map" in case.grads,
        )  # fmt: skip
    return reasons


__all__ = ["DTYPES", "GRADS", "LAYOUTS", "MASKS", "SCALES", "TABLES", "Case", "options", "refused", "run", "tensors"]
