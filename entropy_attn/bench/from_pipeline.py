"""The workloads of a pipeline on disk, seen by running one denoising step of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from entropy_attn.bench.workloads import Size, Workload, size_name
from entropy_attn.integrations.diffusers import apply
from entropy_attn.scale import CallInfo

GUIDANCE = 7.5  # any above 1: its two halves make a batch of 2


def pipeline_workloads(pipe: Any, name: str, size: Size) -> list[Workload]:
    """Every shape of attention call of one step at ``size``, with how often it is made; the pipeline is as before."""
    seen: Counter[tuple] = Counter()

    def see(info: CallInfo) -> None:
        """A scale policy that leaves the model's own."""
        seen[info.kind, info.num_heads, info.seqlen_q, info.seqlen_k, info.head_dim] += 1

    with apply(pipe, scale=see, layers="all"):
        pipe("a picture", height=size[0], width=size[1], num_inference_steps=1, guidance_scale=GUIDANCE,
             output_type="latent")  # fmt: skip
    return [
        Workload(
            name, size_name(size), kind, 2, heads, n, keys, head_dim, layers, (0, keys) if kind == "cross" else None
        )
        for (kind, heads, n, keys, head_dim), layers in seen.items()
    ]
