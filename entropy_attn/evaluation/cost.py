"""`evaluate cost`: time and peak memory of an image by size: scale policies, resampling, MultiDiffusion.

Times are those of whole generations that alternate in one process, in both orders. On a CPU they are processor time,
which other processes hardly lengthen; on a GPU they are between two CUDA events. Peak memory is that of one generation:
on a CPU of a new process that does nothing else, on a GPU what torch has allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from entropy_attn.evaluation.cost_clock import generation_time, gpu_peak_mib, peak_in_new_process
from entropy_attn.evaluation.sampling import Settings, noise_seed
from entropy_attn.pipelines import check_size, sample, train_size
from entropy_attn.pipelines.multidiffusion import multidiffusion, multidiffusion_reason
from entropy_attn.profiling.plan import described, size_name
from entropy_attn.runs.folder import OnRun, RunFolder
from entropy_attn.validation import expected, require_int

Size = tuple[int, int]

RESAMPLED, MULTIDIFFUSION = "resampled", "MultiDiffusion"
WARMUP_STEPS = 2


@dataclass(frozen=True)
class CostPlan:
    """What is measured.

    Attributes:
        sizes: image sizes (height, width) in pixels.
        policies: {name: scale policy}; the first one is what others are compared with.
        prompt: of the image.
        settings: of the sampling.
        repeats: timed generations of each way.
        about: further facts, which the parts of an evaluation must have in common.

    Raises:
        ValueError: a field is empty, or has the same value twice.
    """

    sizes: Sequence[Size]
    policies: Mapping[str, Any]
    prompt: str
    settings: Settings
    repeats: int = 3
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_int("repeats", self.repeats, 1)
        for name in ("sizes", "policies"):
            if not getattr(self, name):
                raise ValueError(expected(name, "at least one", getattr(self, name)))
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(expected("sizes", "different values", list(self.sizes)))
        taken = [name for name in self.policies if name in (RESAMPLED, MULTIDIFFUSION)]
        if taken:
            raise ValueError(expected("policies", f"other names than {RESAMPLED} and {MULTIDIFFUSION}", taken[0]))

    @property
    def ways(self) -> list[str]:
        """Names of everything that is compared."""
        return [*self.policies, RESAMPLED, MULTIDIFFUSION]

    def described(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "sizes": [size_name(size) for size in self.sizes],
            "policies": {name: described(policy) for name, policy in self.policies.items()},
            "prompt": self.prompt,
            "repeats": self.repeats,
            "steps": self.settings.steps,
            "guidance_scale": self.settings.guidance_scale,
            "negative_prompt": self.settings.negative_prompt,
            "arguments": {name: described(value) for name, value in self.settings.arguments.items()},
            **self.about,
        }


def not_applicable(pipe: Any, way: str, size: Size) -> str | None:
    """Why a way cannot make an image of this size; None if it can."""
    if way == MULTIDIFFUSION:
        return multidiffusion_reason(pipe, size)
    if way == RESAMPLED and tuple(size) == train_size(pipe):
        return "this is the training size"
    return None


def generate(pipe: Any, plan: CostPlan, way: str, size: Size, steps: int | None = None) -> Any:
    """The image of one way."""
    from PIL import Image

    used = multidiffusion(pipe) if way == MULTIDIFFUSION else pipe
    (image,) = sample(
        used,
        [plan.prompt],
        size=train_size(pipe) if way == RESAMPLED else size,
        scale=plan.policies.get(way),
        seed=noise_seed(0, 0),
        steps=steps or plan.settings.steps,
        guidance_scale=plan.settings.guidance_scale,
        negative_prompt=plan.settings.negative_prompt,
        arguments=plan.settings.arguments,
    )
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC) if way == RESAMPLED else image


def evaluate_cost(
    load: Callable[[], Any], plan: CostPlan, out: Path, device: str = "cpu", on_run: OnRun | None = None
) -> list[dict[str, Any]]:
    """Measure what is missing in the folder; returns the rows of cost.csv.

    Args:
        load: makes the pipeline; called again in new processes, so it must be picklable.
        plan: what is measured.
        out: the folder; what another call has finished there is not measured again.
        device: where the pipeline runs.
        on_run: called after each run, with its name, seconds (None if it was there), its number and the number of runs.

    Raises:
        ValueError: the pipeline cannot make an image of the plan, or the folder has other measurements.
    """
    pipe = load()
    for size in plan.sizes:
        check_size(pipe, size)
    where = torch.device(device)
    ways = {size: [way for way in plan.ways if not_applicable(pipe, way, size) is None] for size in plan.sizes}
    timed = {
        f"{size_name(size)}-time-{repeat}": (size, repeat) for size in plan.sizes for repeat in range(plan.repeats)
    }
    held = {
        f"{size_name(size)}-memory-{plan.ways.index(way)}": (size, way) for size in plan.sizes for way in ways[size]
    }
    facts = {**plan.described(), "device": where.type, "threads": torch.get_num_threads()}
    store = RunFolder(out / "cost", facts, [*timed, *held])
    warm: set[Size] = set()

    def measure(name: str, folder: Path) -> dict[str, Any]:
        if name in held:
            size, way = held[name]
            if where.type == "cuda":
                peak = gpu_peak_mib(where, partial(generate, pipe, plan, way, size))
            else:
                peak = peak_in_new_process(_generate_in_child, load, plan, way, size)
            return {"way": way, "peak_mib": peak[0], "extra_mib": peak[1]}
        size, repeat = timed[name]
        if size not in warm:
            warm.add(size)
            for way in ways[size]:
                generate(pipe, plan, way, size, WARMUP_STEPS)
        order = ways[size] if repeat % 2 == 0 else ways[size][::-1]
        return {"seconds_of": {way: generation_time(where, partial(generate, pipe, plan, way, size)) for way in order}}

    store.complete(measure, on_run)
    return cost_rows(pipe, plan, store, timed, held)


def _generate_in_child(load: Callable[[], Any], plan: CostPlan, way: str, size: Size) -> Callable[[], Any]:
    """Called in the new process: what is to be measured, when everything else is loaded."""
    pipe = load()
    smallest = min(plan.sizes, key=lambda each: each[0] * each[1])
    generate(pipe, plan, next(iter(plan.policies)), smallest, 1)  # what libraries allocate once
    return partial(generate, pipe, plan, way, size)


def cost_rows(
    pipe: Any,
    plan: CostPlan,
    store: RunFolder,
    timed: Mapping[str, tuple[Size, int]],
    held: Mapping[str, tuple[Size, str]],
) -> list[dict[str, Any]]:
    """The rows of cost.csv: for each size and way medians, ranges and ratios, or why it does not apply."""
    times = [(size, store.read(name)["seconds_of"]) for name, (size, _) in timed.items()]
    memory = {key: store.read(name) for name, key in held.items()}
    base = next(iter(plan.policies))
    rows = []
    for size in plan.sizes:
        of_size = [found for each, found in times if each == size]
        for way in plan.ways:
            row: dict[str, Any] = {"size": size_name(size), "way": way}
            reason = not_applicable(pipe, way, size)
            if reason is None:
                row |= _spread("seconds", [found[way] for found in of_size])
                row |= _spread("times_off", [found[way] / found[base] for found in of_size])
                row |= {name: memory[size, way][name] for name in ("peak_mib", "extra_mib")}
            rows.append({**dict.fromkeys(FIELDS), **row, "repeats": plan.repeats if reason is None else 0,
                         "not_applicable": reason})  # fmt: skip
    return rows


FIELDS = ("size", "way", "repeats", "seconds", "seconds_min", "seconds_max", "times_off", "times_off_min",
          "times_off_max", "peak_mib", "extra_mib", "not_applicable")  # fmt: skip


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {name: median, f"{name}_min": ordered[0], f"{name}_max": ordered[-1]}
