"""The packages of FlashAttention 2, 3 and 4. None is required; each is imported when it runs."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from entropy_attn.bench.implementations.contract import Ask, Implementation, Results, half_on_cuda, not_installed

# flash-attn-4 puts its folder `cute` beside the modules of flash-attn, which is a package of its own.
FLASH2 = ("flash_attn.flash_attn_interface", "pip install flash-attn")
FLASH3 = ("flash_attn_interface", "build hopper/ of github.com/Dao-AILab/flash-attention")
FLASH4 = ("flash_attn.cute", "pip install flash-attn-4")


def tokens_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    """(B, N, H, D) views."""
    return tuple(t.transpose(1, 2) for t in tensors)


def _results(answer: Any, ask: Ask) -> Results:
    out, lse = (answer[0], answer[1]) if isinstance(answer, tuple) else (answer, None)
    return {"out": out.transpose(1, 2)} | ({"lse": lse} if ask.task == "lse" else {})


def _flash2(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from flash_attn import flash_attn_func

    return _results(flash_attn_func(*tokens_first(query, key, value), return_attn_probs=ask.task == "lse"), ask)


def _flash3(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from flash_attn_interface import flash_attn_func

    lse = {"return_attn_probs": True} if ask.task == "lse" else {}
    return _results(flash_attn_func(*tokens_first(query, key, value), **lse), ask)


def _flash4(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> Results:
    from flash_attn.cute import flash_attn_func

    return _results(flash_attn_func(*tokens_first(query, key, value), return_lse=ask.task == "lse"), ask)


def flash4_lse(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Output and lse, both differentiable; the value's head dim may differ on Hopper."""
    from flash_attn.cute import flash_attn_func

    out, lse = flash_attn_func(*tokens_first(query, key, value), softmax_scale=scale, return_lse=True)
    return out.transpose(1, 2), lse


def flash_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    width = max(query.shape[3], value.shape[3])
    wide = [f"expected head_dim up to 256, got {width}"] if width > 256 else []
    return half_on_cuda(query, key, value, ask) + wide


def _older_reasons(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> list[str]:
    no_gradient = ["its lse has no gradient"] if ask.gradient and ask.task == "lse" else []
    return flash_reasons(query, key, value, ask) + no_gradient


flash4_missing = functools.partial(not_installed, *FLASH4)
FLASH_ATTENTION = (
    Implementation(
        "flash-attn-2", _flash2, ("plain", "lse"), missing=functools.partial(not_installed, *FLASH2),
        reasons=_older_reasons,
    ),
    Implementation(
        "flash-attn-3", _flash3, ("plain", "lse"), missing=functools.partial(not_installed, *FLASH3),
        reasons=_older_reasons,
    ),
    Implementation("flash-attn-4", _flash4, ("plain", "lse"), missing=flash4_missing, reasons=flash_reasons),
)  # fmt: skip
