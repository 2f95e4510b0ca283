"""What the compiler makes of the table's configurations: nothing spills, the tile fits, matrix units are used."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.kernels.configs import SHARED_MEMORY, TARGETS, forward_config
from entropy_attn.kernels.launch import ForwardCall

from .aot import compile_call


@pytest.mark.parametrize("head_dim", [64])
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_clean(target, head_dim):
    q = torch.empty(1, 8, 4096, head_dim, dtype=torch.float16)
    rows = torch.empty(1, 8, 4096)
    config = forward_config(target, head_dim, head_dim, q.dtype, seqlen_k=4096, return_entropy=True)
    code = compile_call(ForwardCall(q, q, q, torch.empty_like(q), rows, rows, None, False, None, target), config)
    assert code.spilled == 0 and code.stack == 0
    assert code.shared <= SHARED_MEMORY[target]
    assert code.matrix_instructions > 0
