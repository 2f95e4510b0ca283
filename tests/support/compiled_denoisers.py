"""Denoisers under torch.compile, and how many graphs it makes of them."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.tiny_denoisers import CASES


def call_at(name: str, size: Any, step: int) -> dict[str, Any]:
    """The arguments of the call at a step; each step has a different timestep."""
    call = CASES[name].call(*size)
    timestep = "t" if "t" in call else "timestep"
    return {**call, timestep: call[timestep] + step}


def graphs(
    name: str, denoiser: Any, repeated: bool, sizes: Any = None, **compile: Any
) -> tuple[int, list[torch.Tensor]]:
    """The number of graphs that torch.compile makes of these calls, and their outputs."""
    torch._dynamo.reset()
    count = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal count
        count += 1
        return graph.forward

    outputs = []
    if repeated:
        denoiser.compile_repeated_blocks(backend=backend, fullgraph=True)
    else:
        denoiser.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        for step, size in enumerate(sizes or CASES[name].sizes[:1] * 3):
            outputs.append(denoiser(**call_at(name, size, step), return_dict=False)[0])
    for module in denoiser.modules():
        module._compiled_call_impl = None
    return count, outputs
