"""A policy that fails in one process only, while the other one waits for its tokens."""

from __future__ import annotations

import torch

import entropy_attn as ea
from tests.spread.worker import flux, spread, start


def main() -> None:
    rank, world = start()
    model, call = flux()()
    spread(model, ulysses_degree=world)

    def policy(info: ea.CallInfo) -> None:
        if rank == 1 and info.layer.startswith("single"):
            raise RuntimeError("the policy of process 1 failed")

    with ea.apply(model, scale=policy), torch.no_grad():
        model(**call)
    print(f"process {rank} waited for nothing")


if __name__ == "__main__":
    main()
