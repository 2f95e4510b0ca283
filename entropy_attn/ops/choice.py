"""Which implementation ``impl="auto"`` takes for a call that wants no statistics: the faster one, if both were timed.

The rows are those of `kernels/forward/measured.csv`, in fp16 or bf16 without mask, causality or grouped heads. A call
without a row goes to torch, so that nobody gets slower than they were.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from entropy_attn.kernels.common.support import call_target
from entropy_attn.kernels.forward.measured import measured, table


def may_choose(query: Tensor) -> bool:
    """Whether there is a choice at all; asked first, for it costs less than to make it."""
    return query.device.type == "cuda" and not torch.compiler.is_compiling() and bool(table())


def measured_choice(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> Literal["triton", "sdpa"]:
    """What was measured of a call without statistics; "sdpa" where nothing was.

    A compiled graph takes torch's: the choice would be of one length.
    """
    covered = (
        may_choose(query)
        and query.dtype in (torch.float16, torch.bfloat16)
        and attn_mask is None
        and not is_causal
        and query.shape[1] == key.shape[1]
        and query.shape[3] == value.shape[3]
    )
    if not covered:
        return "sdpa"
    row = measured(call_target(query), query.shape[3], query.shape[2], key.shape[2], entropy=False)
    return "triton" if row is not None and row.faster_than_torch else "sdpa"
