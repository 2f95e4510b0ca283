"""Which calls the Triton kernels serve, and on which compile target; this does not import Triton."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re

import torch
from torch import Tensor

from ..backward.configs import widest
from ..maps.configs import heads_per_program, map_config, map_programs
from .call import AttentionCall
from .head_dims import MAX_HEAD_DIM, MIN_HEAD_DIM
from .targets import INTERPRETER
from .tracing import constant_in_graphs

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_PROGRAMS = 2**31 - 1  # on a grid's first axis, the only one that the kernels use
LEAST_BLOCK = 16  # queries or keys a program: the fewest of any configuration
MAX_SCALE = 1e15  # times the largest product of float16 vectors, it is below the mark of excluded keys
# Earlier releases omit the fence between a copy into shared memory and its reading by Hopper's and Blackwell's matrix
# units (triton-lang/triton#10537); tests/emulation finds that in the kernels with 3.5.1, 3.6.0 and 3.7.0.
FENCED_TRITON = (3, 7, 1)
UNFENCED_TARGETS = ("sm_90", "sm_100")  # the first has a workaround: arguments.pipeline_stages
MAX_SEQLEN = 2**30  # block starts and lengths are 32-bit integers in the kernel


def interpreting() -> bool:
    """Whether the environment turns Triton's interpreter on; Triton reads the variable at its import."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def triton_version() -> tuple[int, ...]:
    """Major, minor and patch number of the installed Triton; empty where its release is unknown."""
    for name in ("triton", "pytorch-triton"):
        try:
            numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if numbers:
            return tuple(map(int, numbers.groups()))
    return ()


def lacks_fence(target: str) -> bool:
    """Whether the installed Triton omits a fence that the target needs."""
    return target in UNFENCED_TARGETS and () < triton_version() < FENCED_TRITON


@functools.cache
def device_target(device: torch.device) -> str | None:
    """The row of the configuration table for a CUDA or ROCm device; None where the table has no row."""
    if torch.version.hip:
        arch = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return "gfx942" if arch in ("gfx90a", "gfx942", "gfx950") else None
    major, minor = torch.cuda.get_device_capability(device)
    if major == 8:
        return "sm_80" if minor == 0 else "sm_89"  # 8.6, 8.7 and 8.9 have the smaller shared memory
    return {9: "sm_90", 10: "sm_100", 12: "sm_120"}.get(major)


def call_target(query: Tensor) -> str:
    """The configuration table's row for a call that `unsupported_reasons` accepts."""
    return str(_target(query.device))


@constant_in_graphs  # a graph has one target; older torch cannot trace the function
def _target(device: torch.device) -> str | None:
    if interpreting():
        return INTERPRETER
    return device_target(_with_index(device)) if device.type == "cuda" else None


def unsupported_reasons(call: AttentionCall) -> list[str]:
    """Every reason why the kernels cannot serve a call; empty where they can."""
    query, key, value, mask, scale = call.query, call.key, call.value, call.attn_mask, call.scale
    reasons = list(_environment_reasons(query.device))
    if query.dtype not in DTYPES:
        reasons.append(f"dtype {query.dtype} of the query is not float16, bfloat16 or float32")
    elif query.dtype == torch.bfloat16 and interpreting():
        reasons.append(
            "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 with TRITON_INTERPRET=1"
        )
    for name, dim in (("query and key", query.shape[3]), ("value", value.shape[3])):
        if not MIN_HEAD_DIM <= dim <= MAX_HEAD_DIM or dim % 8:
            reasons.append(f"head_dim {dim} of {name} is not a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")
    if mask is not None and mask.dtype not in (torch.bool, *DTYPES):
        reasons.append(f"attn_mask of {mask.dtype} is neither boolean nor float16, bfloat16 or float32")
    elif mask is not None and mask.dtype == torch.bfloat16 and interpreting():
        reasons.append("Triton's interpreter cannot add a bfloat16 attn_mask: use float16 or float32")
    if call.key_scale is not None or call.key_bias is not None:
        reasons += _table_reasons(call)
    if isinstance(scale, float) and abs(scale) > MAX_SCALE:
        reasons.append(f"scale {scale} is beyond {MAX_SCALE:.0e}, where logits leave the range of float32")
    if max(query.shape[2], key.shape[2]) > MAX_SEQLEN:
        reasons.append(f"more than {MAX_SEQLEN} tokens: query has {query.shape[2]}, key {key.shape[2]}")
    elif query.shape[0] * query.shape[1] * -(-query.shape[2] // LEAST_BLOCK) > MAX_PROGRAMS:
        reasons.append(f"query of shape {tuple(query.shape)} needs more than {MAX_PROGRAMS} programs")
    elif call.map_keys is not None and not reasons:
        reasons += _map_grid_reasons(call)
    if call.needs_gradient:
        reasons += _gradient_reasons(call)
    return reasons


def _table_reasons(call: AttentionCall) -> list[str]:
    """Key tables that the kernels cannot read."""
    reasons = []
    for name, table in (("key_scale", call.key_scale), ("key_bias", call.key_bias)):
        if table is None:
            continue
        if table.dtype not in DTYPES:
            reasons.append(f"{name} of {table.dtype} is not float16, bfloat16 or float32")
        elif table.dtype == torch.bfloat16 and interpreting():
            reasons.append(f"Triton's interpreter cannot read a bfloat16 {name}: use float16 or float32")
    return reasons


def _map_grid_reasons(call: AttentionCall) -> list[str]:
    """A call's map needs at most one program for each head and small tile, which may be more than a grid has."""
    query, (start, stop) = call.query, call.map_range
    batch, num_heads, seqlen_q, head_dim = query.shape
    columns = stop - start
    if batch * num_heads * -(-seqlen_q // LEAST_BLOCK) * -(-columns // LEAST_BLOCK) <= MAX_PROGRAMS:
        return []
    mask = call.attn_mask
    per_query = mask is not None and mask.ndim > 1 and mask.shape[-2] > 1
    target, widths = call_target(query), (head_dim, call.value.shape[3])
    config = map_config(target, *widths, query.dtype, seqlen_k=call.key.shape[2], mask_per_query=per_query)
    programs = map_programs(config, batch, 1, seqlen_q, columns)
    heads = heads_per_program(target, num_heads, programs, config.num_warps)
    if map_programs(config, batch, -(-num_heads // heads), seqlen_q, columns) <= MAX_PROGRAMS:
        return []
    return [
        f"map_keys {call.map_keys} of query with shape {tuple(query.shape)} needs more than {MAX_PROGRAMS} programs: "
        "use fewer keys or queries a call"
    ]


def _gradient_reasons(call: AttentionCall) -> list[str]:
    query, key, mask = call.query, call.key, call.attn_mask
    reasons = []
    if key.shape[0] * key.shape[1] * -(-key.shape[2] // LEAST_BLOCK) > MAX_PROGRAMS:
        reasons.append(f"the gradient of key with shape {tuple(key.shape)} needs more than {MAX_PROGRAMS} programs")
    if mask is not None and mask.requires_grad:
        reasons.append('the kernels have no gradient of attn_mask: use attn_mask.detach(), or impl="sdpa"')
    for name, table in (("key_scale", call.key_scale), ("key_bias", call.key_bias)):
        if table is not None and table.requires_grad:
            reasons.append(f'the kernels have no gradient of {name}: detach it, or use impl="sdpa"')
    for name, wanted in (
        ("variance", call.return_variance),
        ("max", call.return_max),
        ("mass", call.mass_keys is not None),
    ):
        if wanted:
            reasons.append(
                f'the kernels have no gradient of the statistic {name!r}: use torch.no_grad() or impl="sdpa"'
            )
    target = _target(query.device)
    if target is not None:
        has_mask, has_map = mask is not None or call.key_groups, call.map_keys is not None
        reasons += backward_unsupported(
            target, query.shape[3], call.value.shape[3], query.dtype, has_mask=has_mask, has_map=has_map
        )
    return reasons


def backward_unsupported(
    target: str, head_dim: int, head_dim_v: int, dtype: torch.dtype, *, has_mask: bool = False, has_map: bool = False
) -> list[str]:
    """Every reason why the backward kernels cannot serve a call that the forward serves; empty where they can."""
    limit = widest(target, dtype, has_mask=has_mask, has_map=has_map)
    named = (("a mask or a factor or bias of keys", has_mask), ("a gradient of the map", has_map))
    options = [name for name, given in named if given]
    call = f"{dtype} on {target}" + (f" with {' and '.join(options)}" if options else "")
    return [
        f"head_dim {dim} of {name} is beyond {limit}, the most that the backward kernels hold in registers for {call}"
        for name, dim in (("query and key", head_dim), ("value", head_dim_v))
        if dim > limit
    ]


@constant_in_graphs
def _environment_reasons(device: torch.device) -> tuple[str, ...]:
    if not has_triton():
        return ("Triton is not installed",)
    if interpreting():
        return () if device.type in ("cpu", "cuda") else (f"device {device} is neither cpu nor cuda",)
    if device.type == "cpu":
        return ("the tensors are on the cpu, and TRITON_INTERPRET=1 is not set",)
    if device.type != "cuda":
        return (f"device {device} is not cuda",)
    target = device_target(_with_index(device))
    if target is None:
        name = torch.cuda.get_device_name(device)
        return (f"{name} is not supported: expected NVIDIA of compute capability 8.0 or later, or AMD CDNA 2 to 4",)
    if target != "sm_90" and lacks_fence(target):
        have, need = (".".join(map(str, v)) for v in (triton_version(), FENCED_TRITON))
        return (f"Triton {have} omits a fence that {target} needs, so results may be wrong: use {need} or later",)
    return ()


def _with_index(device: torch.device) -> torch.device:
    """The device with an index: `cuda` is whichever device is current, so it cannot be the key of a cache."""
    return device if device.index is not None else torch.device(device.type, torch.cuda.current_device())
