"""Attention of other packages. None is required; each is imported when it runs."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from entropy_attn.bench.implementations.contract import Ask, Implementation, Results, half_on_cuda

TUTORIAL = "ENTROPY_ATTN_TUTORIAL"  # path of Triton's python/tutorials/06-fused-attention.py, which no package contains
SAGE_SLACK = 64.0  # it quantizes queries and keys to 8 bits


def _installed(package: str, more: Callable[..., list[str]] | None = None) -> Callable[..., list[str]]:
    def reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
        missing = [] if importlib.util.find_spec(package) else [f"{package} is not installed"]
        return missing + half_on_cuda(query, key, value, ask) + (more(query, key, value, ask) if more else [])

    return reasons


def _tokens_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    """(B, N, H, D) views."""
    return tuple(t.transpose(1, 2) for t in tensors)


def _with_lse(answer: Any, ask: Ask) -> Results:
    out, lse = (answer[0], answer[1]) if isinstance(answer, tuple) else (answer, None)
    return {"out": out.transpose(1, 2)} | ({"lse": lse} if ask.task == "lse" else {})


def _flash2(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from flash_attn import flash_attn_func

    return _with_lse(flash_attn_func(*_tokens_first(query, key, value), return_attn_probs=ask.task == "lse"), ask)


def _flash3(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from flash_attn_interface import flash_attn_func

    lse = {"return_attn_probs": True} if ask.task == "lse" else {}
    return _with_lse(flash_attn_func(*_tokens_first(query, key, value), **lse), ask)


def _flash_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    wide = [f"expected head_dim up to 256, got {query.shape[3]}"] if query.shape[3] > 256 else []
    return wide + (["its lse has no gradient"] if ask.gradient and ask.task == "lse" else [])


def _sage(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from sageattention import sageattn

    return {"out": sageattn(query, key, value, tensor_layout="HND", is_causal=False)}


def _sage_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    return [f"expected head_dim up to 128, got {query.shape[3]}"] if query.shape[3] > 128 else []


def _xformers(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from xformers.ops import memory_efficient_attention

    return {"out": memory_efficient_attention(*_tokens_first(query, key, value)).transpose(1, 2)}


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
    if query.shape[2] != key.shape[2] or query.shape[2] % 128:
        reasons.append(f"expected equal lengths, a multiple of 128, got {query.shape[2]} and {key.shape[2]}")
    return reasons


PACKAGES = (
    Implementation("flash-attn-2", _flash2, ("plain", "lse"), reasons=_installed("flash_attn", _flash_reasons)),
    Implementation(
        "flash-attn-3", _flash3, ("plain", "lse"), reasons=_installed("flash_attn_interface", _flash_reasons)
    ),
    Implementation(
        "sage", _sage, passes=("forward",), reasons=_installed("sageattention", _sage_reasons), slack=SAGE_SLACK
    ),
    Implementation("xformers", _xformers, reasons=_installed("xformers")),
    Implementation("triton-tutorial", _tutorial, reasons=_tutorial_reasons),
)
