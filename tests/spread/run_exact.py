"""A routed Flux in every mode against one process: output, entropies, maps, and what policies see."""

from __future__ import annotations

from typing import Any

import torch

import entropy_attn as ea
from tests.spread.worker import Kept, Make, Report, difference, flux, spread, start

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
    response, raw = ea.ResponseRecorder(), Kept(WORDS[::2])  # of the words from the first to the last
    record = [entropy, each, maps, response, raw]
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
        "map": torch.stack(raw.kept),  # not in the recorder's float32
        "maps": maps.maps(),
        "response": [answered[name] for name in ("entropy", "response", "logit_std")],
    }


def per_head(info: ea.CallInfo) -> torch.Tensor:
    return torch.linspace(0.1, 0.6, info.num_heads, dtype=torch.float64)


def per_sample(info: ea.CallInfo) -> torch.Tensor:
    return torch.linspace(0.1, 0.6, 2 * info.num_heads, dtype=torch.float64).view(2, info.num_heads)


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
        (", a scale per sample", flux(), per_sample, "all", ["ulysses", "ring"]),
        (", 81 + 7 tokens", flux(81, 7), logn, "all", ["ulysses anything", "ring anything"]),
        (", 7 heads", flux(64, 8, 7), per_head, "all", ["ulysses anything", "ring"]),
    ):
        one = measure(make, None, scale, rows)
        for name in names:
            found = measure(make, modes[name], scale, rows)
            numbers = {key: difference(one[key], found[key]) for key in one if key not in ("seen", "labels")}
            same = one["seen"] == found["seen"] and one["labels"] == found["labels"]
            report.add(name + options, **numbers, different=not same)
    narrow, exact_results = flux(dtype=torch.bfloat16), measure(flux(), None, logn, "all")
    for name, config in (("one device", None), ("ulysses", modes["ulysses"]), ("ring", modes["ring"])):
        found = measure(narrow, config, logn, "all")
        numbers = {key: difference(exact_results[key], found[key]) for key in ("out", "entropy", "spatial", "map")}
        report.add(f"{name}, bfloat16", **numbers, different=exact_results["seen"] != found["seen"])
    report.finish()


if __name__ == "__main__":
    main()
