"""A routed Flux in every mode of context parallelism against one process: output, entropies, maps, what policies see."""

from __future__ import annotations

from typing import Any

import torch

import entropy_attn as ea
from tests.spread.worker import Make, Report, difference, flux, spread, start

LABELS = ("layer", "kind", "step", "branch", "head", "seqlen_q", "seqlen_k", "scale")
WORDS = (1, 2, 5)


def measure(make: Make, config: dict[str, Any] | None, scale: Any, rows: str) -> dict[str, Any]:
    model, call = make()
    if config:
        spread(model, **config)
    seen = []

    def policy(info: ea.CallInfo) -> Any:
        seen.append((info.layer, info.kind, info.seqlen_q, info.seqlen_k, info.text_tokens, info.num_heads))
        return scale(info)

    entropy, each, maps = ea.EntropyRecorder(), ea.EntropyRecorder(per_query=True), ea.MapRecorder(tokens=WORDS)
    response = ea.ResponseRecorder()
    record = [entropy, each, maps, response]
    with torch.no_grad(), ea.apply(model, scale=policy, record=record, layers="all", rows=rows):
        out = model(**call)[0]
    columns, answered = entropy.to_columns(), response.to_columns()
    spatial = each.spatial(kind="joint")
    return {
        "seen": seen,
        "labels": [columns[name] for name in LABELS],
        "out": out,
        "entropy": [columns[name] for name in ("mean", "std", "min", "max")],
        "spatial": torch.stack([torch.as_tensor(spatial[layer]) for layer in spatial]),
        "map": maps.maps(),
        "response": [answered[name] for name in ("entropy", "response", "logit_std")],
    }


def per_head(info: ea.CallInfo) -> torch.Tensor:
    return torch.linspace(0.1, 0.6, info.num_heads, dtype=torch.float64)


def main() -> None:
    _, world = start()
    logn = ea.scale.LogN(train_tokens=16)
    exact = {"convert_to_fp32": False}  # in float64 diffusers' default rounds what a ring merges
    modes: dict[str, dict[str, Any]] = {
        "ulysses": {"ulysses_degree": world},
        "ring": {"ring_degree": world, **exact},
        "ring, default": {"ring_degree": world},
        "ring and ulysses": {"ring_degree": 2, "ulysses_degree": 2, **exact},
        "ulysses anything": {"ulysses_degree": world, "ulysses_anything": True},
        "ring anything": {"ring_degree": world, "ring_anything": True, **exact},
    }
    report = Report()
    for options, make, scale, rows, names in (
        ("", flux(), logn, "all", list(modes)),
        (", rows of the image", flux(), logn, "image", list(modes)),
        (", a scale per head", flux(), per_head, "all", list(modes)),
        (", 81 + 7 tokens", flux(81, 7), logn, "all", ["ulysses anything", "ring anything"]),
        (", 7 heads", flux(64, 8, 7), per_head, "all", ["ulysses anything", "ring"]),
        (", bfloat16", flux(dtype=torch.bfloat16), logn, "all", ["ulysses", "ring"]),
    ):
        one = measure(make, None, scale, rows)
        for name in names:
            found = measure(make, modes[name], scale, rows)
            numbers = {key: difference(one[key], found[key]) for key in one if key not in ("seen", "labels")}
            same = one["seen"] == found["seen"] and one["labels"] == found["labels"]
            report.add(name + options, **numbers, different=not same)
    report.finish()


if __name__ == "__main__":
    main()
