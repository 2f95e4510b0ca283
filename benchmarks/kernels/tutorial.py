"""The fused attention of Triton's tutorials, compiled for Hopper without a GPU.

It is part of Triton's repository, not of its wheel: `python/tutorials/06-fused-attention.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from entropy_attn.kernels.common.targets import SHARED_MEMORY
from tests.codegen.aot import Code, compile_kernel

TARGET = "sm_90"
HEAD_DIMS = (64, 128)  # of its benchmark
BATCH, HEADS, SEQLEN = 2, 8, 4096
NEEDED = ("_attn_fwd", "prune_invalid_configs")


def version(path: Path) -> str:
    """The name that git gives to the content of the file, shortened; `git ls-tree` shows it for a release of Triton."""
    data = path.read_bytes()
    return "blob " + hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()[:12]


def load(path: Path) -> ModuleType:
    """Run the file as on a machine with a GPU of `TARGET`: it asks Triton's driver and torch for the device.

    Raises:
        ValueError: the file has no kernel of the expected name.
    """
    spec = importlib.util.spec_from_file_location("fused_attention_tutorial", path)
    module = importlib.util.module_from_spec(spec)
    card = SimpleNamespace(
        get_active_torch_device=lambda: torch.device("cpu"),
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_VERSION"}  # it changes the file
    with (
        mock.patch.object(driver, "_active", card),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        mock.patch.dict(os.environ, environment, clear=True),
    ):
        spec.loader.exec_module(module)
    missing = [name for name in NEEDED if not hasattr(module, name)]
    if missing:
        raise ValueError(f"tutorial: expected {path} to have {' and '.join(NEEDED)}, but {missing[0]} is missing")
    return module


def candidates(module: ModuleType, head_dim: int) -> Iterator[tuple[Any, Code]]:
    """The configurations that the tutorial tries, compiled for a call without a causal mask.

    Left out are those that the tutorial's kernel refuses (blocks of keys wider than the head dim) and those that do not
    fit into shared memory.
    """
    for config in module.prune_invalid_configs(module._attn_fwd.configs, {}, N_CTX=SEQLEN, STAGE=1):
        if config.kwargs["BLOCK_N"] > head_dim:
            continue
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        code = compile_kernel(module._attn_fwd.fn, _arguments(head_dim, **config.kwargs), TARGET, options)
        if code.shared <= SHARED_MEMORY[TARGET]:
            yield config, code


def _arguments(head_dim: int, BLOCK_M: int, BLOCK_N: int) -> dict[str, Any]:
    rows = torch.empty(BATCH * HEADS * SEQLEN, head_dim, dtype=torch.float16)
    statistics = torch.empty(BATCH, HEADS, SEQLEN)
    queries, keys = (TensorDescriptor.from_tensor(rows, [block, head_dim]) for block in (BLOCK_M, BLOCK_N))
    return {
        "sm_scale": head_dim**-0.5, "M": statistics, "Z": BATCH, "H": HEADS, "N_CTX": SEQLEN,
        "desc_q": queries, "desc_k": keys, "desc_v": keys, "desc_o": queries,
        "HEAD_DIM": head_dim, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N,
        "FP8_OUTPUT": False, "STAGE": 1, "warp_specialize": False, "IS_HOPPER": True,
    }  # fmt: skip
