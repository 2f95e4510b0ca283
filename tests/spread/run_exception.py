"""A policy that fails in one process only, while the other one waits for its tokens."""

from __future__ import annotations

import time

import torch

import entropy_attn as ea
from tests.spread.worker import flux, spread, start


def main() -> None:
    rank, world = start()
    model, call = flux()()
    spread(model, ulysses_degree=world)

    def policy(info: ea.CallInfo) -> None:
        if rank == 1 and info.layer.startswith("single"):
            print(f"failed at {time.time()}", flush=True)
            raise RuntimeError("the policy of process 1 failed")

    try:
        with ea.apply(model, scale=policy), torch.no_grad():
            model(**call)
    finally:
        if rank == 0:
            print(f"released at {time.time()}", flush=True)


if __name__ == "__main__":
    main()
