"""Which implementation ``impl="auto"`` takes for a call that wants no statistics: a table of measured rows.

Adding a row means having measured it: the faster of torch's best attention and the Triton kernel on that device, for
that head dim and length, in fp16 or bf16, without mask, causality or grouped heads. A call without a row goes to torch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from entropy_attn.kernels.support import call_target

# (compile target, head_dim, length bucket) -> the faster one.
MEASURED: dict[tuple[str | None, int, int], Literal["triton", "sdpa"]] = {}


def length_bucket(seqlen: int) -> int:
    """Lengths 2**(b-1) < n <= 2**b share bucket b."""
    return max(0, seqlen - 1).bit_length()


def measured_choice(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> Literal["triton", "sdpa"]:
    """What the table says about a call without statistics; "sdpa" where nothing was measured."""
    covered = (
        query.dtype in (torch.float16, torch.bfloat16)
        and attn_mask is None
        and not is_causal
        and query.shape[1] == key.shape[1]
        and query.shape[3] == value.shape[3]
    )
    if not covered or not MEASURED or query.device.type != "cuda":
        return "sdpa"
    target = call_target(query)
    return MEASURED.get((target, query.shape[3], length_bucket(max(query.shape[2], key.shape[2]))), "sdpa")
