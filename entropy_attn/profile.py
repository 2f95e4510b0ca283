"""Entropy profiles: sizes x scale policies x seeds through one pipeline, and what the measurements say. No printing."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .pipelines.sampling import sample
from .recorder import EntropyRecorder

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class ProfilePlan:
    """What to run. `policies` maps the name that tables and figures show to a scale policy."""

    sizes: Sequence[Size]
    policies: Mapping[str, Any]
    prompts: Sequence[str]
    seeds: Sequence[int] = (0,)
    steps: int = 15
    guidance_scale: float | None = None
    reference: Size | None = None  # the training size, which the per-layer figure shows for reference

    def __post_init__(self) -> None:
        for name in ("sizes", "policies", "prompts", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: at least one is needed")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: at least 1 is needed")

    @property
    def map_size(self) -> Size:
        """The size whose spatial maps are kept: the largest, where repetition shows."""
        return max(self.sizes, key=lambda size: size[0] * size[1])

    @property
    def total_steps(self) -> int:
        return len(self.sizes) * len(self.policies) * len(self.seeds) * self.steps


@dataclass
class ProfileResult:
    """Measurements and pictures of one profile.

    `entropy` has the recorder's rows with `size height width policy seed` in front; `runs` one row a run with its
    `seconds`; `pictures[(size, policy, seed)]` one picture a prompt; `maps[policy]` the entropies per token of the
    first prompt and seed at the plan's `map_size`, {layer: (h, w) array}.
    """

    plan: ProfilePlan
    entropy: pd.DataFrame
    runs: pd.DataFrame
    pictures: dict[tuple[Size, str, int], list[Any]] = field(default_factory=dict)
    maps: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def size_name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def run_profile(pipe: Any, plan: ProfilePlan, on_step: Callable[[str, str], None] | None = None) -> ProfileResult:
    """Run the plan; `on_step(size, policy)` is called after every denoising step."""
    tables, runs = [], []
    pictures: dict[tuple[Size, str, int], list[Any]] = {}
    maps: dict[str, dict[str, np.ndarray]] = {}
    for size in plan.sizes:
        for policy_name, policy in plan.policies.items():
            for seed in plan.seeds:
                keep_map = size == plan.map_size and seed == plan.seeds[0]
                recorder = EntropyRecorder(per_query=keep_map)
                tick = functools.partial(on_step, size_name(size), policy_name) if on_step else None
                start = time.perf_counter()
                pictures[size, policy_name, seed] = sample(
                    pipe,
                    plan.prompts,
                    size=size,
                    scale=policy,
                    seed=seed,
                    steps=plan.steps,
                    guidance_scale=plan.guidance_scale,
                    record=recorder,
                    on_step=tick,
                )
                seconds = time.perf_counter() - start
                keys = {"size": size_name(size), "height": size[0], "width": size[1], "policy": policy_name}
                runs.append({**keys, "seed": seed, "seconds": seconds})
                table = recorder.to_dataframe()
                for position, (column, value) in enumerate({**keys, "seed": seed}.items()):
                    table.insert(position, column, value)
                tables.append(table)
                if keep_map:
                    maps[policy_name] = {layer: of_prompts[0] for layer, of_prompts in recorder.spatial().items()}
    return ProfileResult(plan, pd.concat(tables, ignore_index=True), pd.DataFrame(runs), pictures, maps)


def self_attention_rows(entropy: pd.DataFrame) -> pd.DataFrame:
    """The rows that the figures and the fit are about: image tokens among the keys, the prompt's half of the batch."""
    rows = entropy[(entropy["kind"] != "cross") & (entropy["branch"] != "uncond")]
    if rows.empty:
        raise ValueError("entropy has no rows of self-attention: nothing to fit or to plot")
    return rows


def layer_means(entropy: pd.DataFrame) -> pd.DataFrame:
    """Mean entropy of every (policy, size, layer) over heads, steps and seeds, with its `tokens` = N and ln N.

    Layers keep the order in which the denoiser calls them.
    """
    rows = self_attention_rows(entropy)
    keys = ["policy", "size", "height", "width", "layer"]
    means = rows.groupby(keys, sort=False).agg(tokens=("seqlen_k", "first"), entropy=("mean", "mean")).reset_index()
    means["ln_tokens"] = np.log(means["tokens"])
    return means


def fit_line(x: np.ndarray, y: np.ndarray) -> dict[str, float | int | None]:
    """Least squares y = slope * x + intercept with its R²; None for what the points do not determine."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(np.unique(x)) < 2:
        return {"slope": None, "intercept": None, "r2": None, "points": len(x)}
    slope, intercept = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    residual = float(((y - slope * x - intercept) ** 2).sum())
    r2 = 1.0 - residual / spread if spread > 0 else None
    return {"slope": float(slope), "intercept": float(intercept), "r2": r2, "points": len(x)}


def summarize(result: ProfileResult) -> dict[str, Any]:
    """The figures worth quoting, ready for JSON: fits, mean entropies and times, all by policy."""
    plan, means = result.plan, layer_means(result.entropy)
    fits, layer_fits, entropy, relative, seconds = {}, {}, {}, {}, {}
    for policy in plan.policies:
        rows = means[means["policy"] == policy]
        fits[policy] = fit_line(rows["ln_tokens"], rows["entropy"])
        layer_fits[policy] = {
            layer: fit_line(group["ln_tokens"], group["entropy"]) for layer, group in rows.groupby("layer", sort=False)
        }
        by_size = rows.groupby("size", sort=False)
        entropy[policy] = {size: float(group["entropy"].mean()) for size, group in by_size}
        relative[policy] = {size: _relative_entropy(group) for size, group in by_size}
        own_runs = result.runs[result.runs["policy"] == policy]
        seconds[policy] = {size: float(group.mean()) for size, group in own_runs.groupby("size", sort=False)["seconds"]}
    return {
        "sizes": [size_name(size) for size in plan.sizes],
        "policies": {name: repr(policy) for name, policy in plan.policies.items()},
        "prompts": list(plan.prompts),
        "seeds": list(plan.seeds),
        "steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "unit": "nats",
        "fit": fits,
        "fit_per_layer": layer_fits,
        "mean_entropy": entropy,
        "mean_entropy_over_ln_tokens": relative,
        "seconds_per_run": seconds,
        "seconds_total": float(result.runs["seconds"].sum()),
    }


def save_data(result: ProfileResult, summary: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """Write entropy.csv and summary.json into `out`; returns their paths."""
    table, digest = out / "entropy.csv", out / "summary.json"
    result.entropy.to_csv(table, index=False)
    digest.write_text(json.dumps(summary, indent=2) + "\n")
    return {"entropy": table, "summary": digest}


def _relative_entropy(group: pd.DataFrame) -> float | None:
    """Mean of H / ln N, 1 for uniform attention; a layer with a single token has no such ratio."""
    many = group[group["tokens"] > 1]
    return float((many["entropy"] / many["ln_tokens"]).mean()) if len(many) else None
