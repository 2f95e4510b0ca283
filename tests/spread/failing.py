"""A policy that fails in one process only, while the other one waits for its tokens."""

from __future__ import annotations

import time


def work(_: int) -> tuple[float, str] | None:
    """When the call raised in this process, in seconds, and what; None if it did not."""
    import torch

    import entropy_attn as ea
    from tests.spread.worker import flux, spread, start

    rank, world = start()
    model, call = flux()()
    spread(model, ulysses_degree=world)

    def policy(info: ea.CallInfo) -> None:
        if rank == 1 and info.layer.startswith("single"):
            raise RuntimeError("the policy of process 1 failed")

    try:
        with ea.apply(model, scale=policy), torch.no_grad():
            model(**call)
    except Exception as error:
        return time.time(), str(error)
    return None
