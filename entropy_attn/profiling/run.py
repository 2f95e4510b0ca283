"""One run of a plan, and the checks before the first."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from entropy_attn.integrations.diffusers.target import pixels_a_token
from entropy_attn.pipelines import check_size, sample
from entropy_attn.pipelines.sampling import call_options
from entropy_attn.profiling.layers import Measured, measured_layers
from entropy_attn.profiling.plan import ProfilePlan, Run
from entropy_attn.profiling.result import RunResult
from entropy_attn.profiling.rows import response_rows, rows_of
from entropy_attn.recorders.base import Recorder
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.response import ResponseRecorder


def check_plan(pipe: Any, plan: ProfilePlan) -> Measured:
    """What the plan will measure.

    Raises:
        ValueError: a run would fail, or measure nothing.
    """
    call_options(
        pipe,
        plan.prompts,
        guidance_scale=plan.guidance_scale,
        negative_prompt=plan.negative_prompt,
        arguments=plan.arguments,
    )
    for size in plan.sizes:
        check_size(pipe, size, max(len(plan.prompts), 1))
    return measured_layers(pipe, list(plan.sizes), plan.policies, plan.layers)


def run_once(
    pipe: Any,
    plan: ProfilePlan,
    run: Run,
    measured: Measured,
    on_step: Callable[[Run], None] | None = None,
) -> RunResult:
    """Generate an image for each prompt, and measure."""
    keep_map = plan.keeps_map(run)
    recorder = EntropyRecorder(per_query=keep_map)
    recorders: list[Recorder] = [recorder]
    probe = None
    if plan.measures_regime(run) and not measured.crosses:
        probe = ResponseRecorder(plan.regime_at)
        recorders.append(probe)
    # If only cross-attention has a softmax, layers="self" selects no layer, and `apply` requires that scale is None.
    idle = measured.crosses and plan.layers == "self"
    start = time.perf_counter()
    pictures = sample(
        pipe,
        plan.prompts,
        size=run.size,
        scale=None if idle else plan.policies[run.policy],
        seed=run.seed,
        steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        negative_prompt=plan.negative_prompt,
        arguments=plan.arguments,
        layers=plan.layers,
        pictures=plan.pictures,
        record=recorders,
        on_step=functools.partial(on_step, run) if on_step else None,
    )
    entropy, heads = rows_of(recorder, run, measured, plan.heads)
    response = pd.DataFrame() if probe is None else response_rows(probe, run)
    seconds = time.perf_counter() - start
    maps = _maps(pipe, run, recorder, measured) if keep_map else None
    step_maps = None if maps is None else _step_maps(pipe, run, recorder, measured, maps)
    return RunResult(entropy, heads, response, seconds, pictures, maps, step_maps)


def _step_maps(
    pipe: Any, run: Run, recorder: EntropyRecorder, measured: Measured, maps: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """{layer: (steps, rows, columns)} of the first image, in half precision: the page shows three digits."""
    steps = sorted(set(recorder.to_columns()["step"]))
    found = {layer: np.full((steps[-1] + 1, *mean.shape), np.nan, np.float16) for layer, mean in maps.items()}
    for step in steps:
        for layer, values in _maps(pipe, run, recorder, measured, step).items():
            found[layer][step] = values
    return found


def _maps(
    pipe: Any, run: Run, recorder: EntropyRecorder, measured: Measured, step: int | None = None
) -> dict[str, np.ndarray]:
    """{layer: (rows, columns)} of the first image, the mean over steps unless one is given."""
    found: dict[str, np.ndarray] = {}
    table = recorder.to_columns()
    queries = dict(zip(table["layer"], table["seqlen_q"], strict=True))
    called = {kind for kind, its_step in zip(table["kind"], table["step"], strict=True) if step in (None, its_step)}
    for kind in measured.kinds:
        if kind not in called:
            continue
        first = next(layer for layer, its_kind in measured.layers.items() if its_kind == kind)
        grid = measured.grid(pipe, run.size, frames_of(pipe, run, measured, queries[first]))
        found |= {layer: maps[0] for layer, maps in recorder.spatial(kind=kind, step=step, grid=grid).items()}
    return {layer: found[layer] for layer in measured.layers if layer in found}


def frames_of(pipe: Any, run: Run, measured: Measured, queries: int) -> int:
    """Frames of a video, in tokens; 1 for an image, even if its tokens are padded."""
    if measured.model.halves or measured.model.pad:
        return 1
    side = pixels_a_token(pipe)
    return max(1, queries // ((run.size[0] // side) * (run.size[1] // side)))
