"""The workloads of a pipeline on disk, observed during one denoising step."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

from entropy_attn.bench.workloads import Size, Workload, size_name
from entropy_attn.integrations.diffusers import apply
from entropy_attn.integrations.diffusers.models import Model
from entropy_attn.scale import CallInfo

GUIDANCE = 7.5  # any value above 1 turns guidance on


def pipeline_workloads(pipe: Any, name: str, size: Size) -> list[Workload]:
    """Each shape of attention call in one step at `size`, with its count; the pipeline is unchanged afterwards."""
    seen: Counter[tuple] = Counter()

    def see(info: CallInfo) -> None:
        """A scale policy that only observes, and keeps the default scale."""
        shape = (info.num_heads, info.seqlen_q, info.seqlen_k, info.head_dim)
        seen[info.kind, shape, _map_keys(handle.model, info)] += 1

    options = {"height": size[0], "width": size[1], "num_inference_steps": 1, "guidance_scale": GUIDANCE}
    if "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters:
        options["use_resolution_binning"] = False  # it would change the size
    with apply(pipe, scale=see, layers="all") as handle:
        pipe("an image", **options, output_type="latent")
        batch = handle.model.guidance.batch_parts
    return [
        Workload(name, size_name(size), kind, batch, heads, seqlen_q, seqlen_k, head_dim, layers, map_keys)
        for (kind, (heads, seqlen_q, seqlen_k, head_dim), map_keys), layers in seen.items()
    ]


def _map_keys(model: Model, info: CallInfo) -> tuple[int, int] | None:
    """The range of text tokens among the keys."""
    if info.kind == "cross":
        return 0, info.seqlen_k
    if info.kind == "joint" and info.text_tokens:
        rule = model.rule(info.layer)
        first = 0 if rule is not None and rule.text == "first" else info.seqlen_k - info.text_tokens
        return first, first + info.text_tokens
    return None
