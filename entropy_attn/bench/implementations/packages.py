"""Attention of other packages, and of a kernel in Helion. None is required; each is imported when it runs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from entropy_attn.bench.implementations.contract import (
    Ask,
    Attend,
    Implementation,
    Reasons,
    Results,
    half_on_cuda,
    not_installed,
)
from entropy_attn.bench.implementations.flash_attention import tokens_first

TUTORIAL = "ENTROPY_ATTN_TUTORIAL"  # path of Triton's python/tutorials/06-fused-attention.py, which no package contains
SAGE_SLACK = 64.0  # it quantizes queries and keys to 8 bits


def _sage(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from sageattention import sageattn

    return {"out": sageattn(query, key, value, tensor_layout="HND", is_causal=False)}


def _sage_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    wide = [f"expected head_dim up to 128, got {query.shape[3]}"] if query.shape[3] > 128 else []
    return half_on_cuda(query, key, value, ask) + wide


def _xformers(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from xformers.ops import memory_efficient_attention

    return {"out": memory_efficient_attention(*tokens_first(query, key, value)).transpose(1, 2)}


def _tlx(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    attend = importlib.import_module("triton.tlx.ops").flash_attn  # of fbtriton, a Triton with more in it
    return {"out": attend(query, key, value, causal=False)}


def _tlx_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    reasons = half_on_cuda(query, key, value, ask)
    if query.shape[3] not in (64, 128):
        reasons.append(f"expected head_dim 64 or 128, got {query.shape[3]}")
    return reasons + _whole_tiles(query, key)


def _whole_tiles(query: Tensor, key: Tensor) -> list[str]:
    if query.shape[2] == key.shape[2] and query.shape[2] % 128 == 0:
        return []
    return [f"expected equal lengths, a multiple of 128, got {query.shape[2]} and {key.shape[2]}"]


def _helion(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from entropy_attn.bench.implementations import helion_kernel

    return helion_kernel.attend(query, key, value, ask)


@functools.cache
def _tutorial_module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("triton_tutorial_fused_attention", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{TUTORIAL}: expected a Python file, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tutorial(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    attend = _tutorial_module(os.environ[TUTORIAL]).attention
    return {"out": attend(query, key, value, False, query.shape[-1] ** -0.5)}


def _tutorial_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    reasons = half_on_cuda(query, key, value, ask)
    if not Path(os.environ.get(TUTORIAL, "")).is_file():
        reasons.append(f"expected {TUTORIAL} to be the path of Triton's tutorial 06-fused-attention.py")
    if query.shape[3] not in (16, 32, 64, 128, 256):
        reasons.append(f"expected head_dim to be a power of two from 16 to 256, got {query.shape[3]}")
    return reasons + _whole_tiles(query, key)


def _package(
    name: str, attend: Attend, module: str, install: str, reasons: Reasons = half_on_cuda, **options: Any
) -> Implementation:
    return Implementation(
        name, attend, missing=functools.partial(not_installed, module, install), reasons=reasons, **options
    )


PACKAGES = (
    _package("sage", _sage, "sageattention", "pip install sageattention", _sage_reasons,
             passes=("forward",), slack=SAGE_SLACK),
    _package("xformers", _xformers, "xformers", "pip install xformers"),
    Implementation("triton-tutorial", _tutorial, reasons=_tutorial_reasons),
    _package("tlx", _tlx, "triton.tlx.ops", "pip install fbtriton, which replaces triton", _tlx_reasons),
    _package("helion", _helion, "helion", "pip install helion", tasks=("plain", "lse", "entropy"),
             passes=("forward",)),
)  # fmt: skip
