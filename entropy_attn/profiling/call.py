"""`ea.profile`: a profile in one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from entropy_attn.integrations.diffusers.models import find_model
from entropy_attn.integrations.diffusers.private import parallel_config_of
from entropy_attn.integrations.diffusers.target import denoiser_of
from entropy_attn.pipelines.sampling import takes_prompt
from entropy_attn.pipelines.sizes import fixed_size, size_multiple, train_size
from entropy_attn.profiling.files import save_all
from entropy_attn.profiling.layers import Measured
from entropy_attn.profiling.notes import notes
from entropy_attn.profiling.plan import DEFAULT_PROMPTS, ProfilePlan, Run, Size, described
from entropy_attn.profiling.result import Profile, RunResult
from entropy_attn.profiling.run import check_plan, run_once
from entropy_attn.profiling.store import OnRun, Store
from entropy_attn.runs.processes import ALONE, launched
from entropy_attn.scale import Fixed, Policy
from entropy_attn.scale.parsing import parse_scale
from entropy_attn.validation import expected, require_bool

SIZE_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)


def profile(
    pipe: Any,
    *,
    sizes: Sequence[int | Size] | None = None,
    scales: Sequence[str | Policy | None] | Mapping[str, str | Policy | None] | None = None,
    prompts: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    seeds: Sequence[int] = (0,),
    steps: int = 15,
    guidance_scale: float | None = None,
    layers: str = "self",
    arguments: Mapping[str, Any] | None = None,
    heads: bool = False,
    pictures: bool = True,
    regime_steps: int = 3,
    out: str | Path | None = None,
    figures: bool = True,
    resume: bool = False,
    distributed: bool = False,
    title: str | None = None,
    about: Mapping[str, Any] | None = None,
    on_step: Callable[[Run], None] | None = None,
    on_run: Callable[[Run, float | None, int, int], None] | None = None,
) -> Profile:
    """Measure the attention entropy of a pipeline at several image sizes under several scale policies.

    Each run (a size, a policy, a seed) is one generation of all prompts. Every denoiser listed in docs/models.md works,
    on any device, offloaded or not, and the pipeline is unchanged afterwards. Arguments that would fail, or measure
    nothing, are refused before anything is sampled.

        result = ea.profile(pipe, sizes=[512, (768, 512)], scales=["off", ea.scale.LogN(strength=0.5)], out="profile")
        result.summary["slope"]["off"]["median"]  # by how many nats a layer's entropy grows per unit of ln N

    Args:
        pipe: a diffusers pipeline.
        sizes: image sizes in pixels, each a number for a square or (height, width). None is 0.5, 0.75, 1, 1.5 and 2
            times the training size. Layers can be compared with their values at the training size only if it is one of
            the sizes.
        scales: policies, or their names with settings as on the command line ("logn:strength=0.5"); None and "off" are
            the model's default scale. A mapping gives the names for tables and figures. None is ("off", "logn"), or
            ("off",) for a model without self- or joint attention.
        prompts: one image is generated for each, all in one batch. None is a few built-in prompts, or none for a
            pipeline that takes no text or gets embeddings from `arguments`.
        negative_prompt: used with every prompt; refused if the pipeline would ignore it.
        seeds: seeds of the starting noise.
        steps: number of denoising steps.
        guidance_scale: strength of classifier-free guidance; None is the pipeline's default.
        layers: layers that get the policies, as in `ea.apply`: "self", "cross", "all" or a regular expression.
        arguments: further arguments of the pipeline's call, such as {"num_frames": 9}.
        heads: keep a row for every head at every step in `Profile.entropy`, instead of statistics over heads.
        pictures: decode and keep the images; if False, the VAE does not run.
        regime_steps: number of steps of each run with the default scale, spread over the generation, at which the
            regime of each layer is measured; such a step makes three calls of attention for one. 0 measures none.
        out: folder to write into, created if it is missing; None writes nothing. Each run is written as soon as it is
            finished, so an interruption or failure loses only the run in progress.
        figures: draw figures into `out`; needs matplotlib.
        resume: keep the runs of the same plan that are finished in `out`, whatever number of processes made them, and
            make the others. If False, a finished profile in `out` is replaced, and an unfinished one refused.
        distributed: divide the runs between the processes of torchrun or `accelerate launch`, all of which make this
            call with the same arguments and their own pipeline, and share `out`. Each gets the whole result; the first
            one writes the files. A failure in one process is raised in all, when the others have made their runs. If
            False, each process that makes the call makes all runs.
        title: name of the model in figures; None is the class name of the pipeline.
        about: further facts for plan.json; `resume` requires them to be the same.
        on_step: called with the run after each denoising step.
        on_run: called with (run, seconds, number of finished runs, number of runs) for each run that was finished
            before, for which `seconds` is None, and after each run of this process.

    Returns:
        A `Profile` with data frames, images, maps and `summary`. Entropies are those of the image's queries, in nats.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument, a size, a policy or the plan in `out` cannot be used; the message names it.
        ea.Unsupported: the pipeline cannot be routed.
        RuntimeError: with `distributed`, another process has failed or ended.
        ImportError: pandas is missing, or matplotlib if figures are drawn.
    """
    plan = make_plan(
        pipe,
        sizes=sizes,
        scales=scales,
        prompts=prompts,
        negative_prompt=negative_prompt,
        seeds=seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        layers=layers,
        arguments=arguments,
        heads=heads,
        pictures=pictures,
        regime_steps=regime_steps,
        about=about,
    )
    for name, value in (("resume", resume), ("distributed", distributed)):
        require_bool(name, value)
        if value and out is None:
            raise ValueError(expected("out", f"the folder of the profile with {name}=True", out))
    if distributed and parallel_config_of(denoiser_of(pipe)) is not None:
        raise ValueError(
            "distributed: expected False with a denoiser that is itself spread over the processes, because of "
            "enable_parallelism, got True"
        )
    measured = check_plan(pipe, plan)
    if out is not None and figures:
        import matplotlib  # noqa: F401  (if it is missing, fail now and not at the end)

    def make(run: Run) -> RunResult:
        return run_once(pipe, plan, run, measured, on_step)

    if out is None:
        return _in_memory(plan, measured, make, on_run)
    response = not measured.crosses and any(map(plan.measures_regime, plan.runs()))
    with launched() if distributed else contextlib.nullcontext(ALONE) as processes:
        store = Store(Path(out), plan, resume, response, processes)
        store.complete(make, on_run)
        found = _assemble(plan, *store.read(), measured)
        found.files = processes.from_first(lambda: save_all(found, store, title or type(pipe).__name__, figures))
    return found


def _in_memory(
    plan: ProfilePlan, measured: Measured, make: Callable[[Run], RunResult], on_run: OnRun | None
) -> Profile:
    runs, kept = list(plan.runs()), []
    for number, run in enumerate(runs, start=1):
        kept.append(make(run))
        if on_run is not None:
            on_run(run, kept[-1].seconds, number, len(runs))
    tables = {name: _joined([getattr(result, name) for result in kept]) for name in ("entropy", "heads", "response")}
    return _assemble(plan, tables, kept, measured)


def make_plan(
    pipe: Any, *, sizes: Any, scales: Any, prompts: Any, arguments: Any, about: Any, **others: Any
) -> ProfilePlan:
    """The plan, with all defaults filled in."""
    arguments = dict(arguments or {})
    if prompts is None:
        embedded = any("embeds" in name for name in arguments)
        prompts = DEFAULT_PROMPTS if takes_prompt(pipe) and not embedded else ()
    try:
        reference = train_size(pipe)
    except ValueError:
        if sizes is None:
            raise
        reference = None
    denoiser = denoiser_of(pipe)
    facts = {"pipeline": type(pipe).__name__, "denoiser": type(denoiser).__name__,
             "weights": str(denoiser.dtype).removeprefix("torch.")}  # fmt: skip
    return ProfilePlan(
        sizes=_sizes(pipe, sizes),
        policies=_policies(denoiser, scales),
        prompts=prompts if isinstance(prompts, str) else list(prompts),
        arguments=arguments,
        reference=reference,
        about={**facts, **(about or {})},
        **others,
    )


def _sizes(pipe: Any, given: Sequence[int | Size] | None) -> list[Size]:
    if given is not None:
        if isinstance(given, (str, int)):
            raise TypeError(f"sizes: expected a list of sizes, got {given!r}")
        return [_size(size) for size in given]
    only = fixed_size(pipe)
    if only is not None:
        return [only]
    multiple = size_multiple(pipe)
    height, width = train_size(pipe)

    def fitting(side: float) -> int:
        return max(1, round(side / multiple)) * multiple

    return list(dict.fromkeys((fitting(height * factor), fitting(width * factor)) for factor in SIZE_FACTORS))


def _size(size: Any) -> Size:
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise TypeError(f"sizes: expected a whole number of pixels, or a pair (height, width), got {size!r}")
    return pair[0], pair[1]


def _policies(denoiser: Any, given: Any) -> dict[str, Any]:
    if given is None:
        model = find_model(denoiser)
        attends = model is None or any(rule.kind in ("self", "joint", "call") for rule in model.layers)
        given = ("off", "logn") if attends else ("off",)
    if isinstance(given, str):
        raise TypeError(f"scales: expected a list of policies, such as [{given!r}], got {given!r}")
    if not isinstance(given, Mapping):
        named = [(_policy_name(policy), policy) for policy in given]
        names = [name for name, _ in named]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"scales: expected different policies, got {twice!r} twice; a mapping can name them")
        given = dict(named)
    policies = {str(name): parse_scale(policy) if isinstance(policy, str) else policy for name, policy in given.items()}
    for name, policy in policies.items():
        if policy is not None and not callable(policy):
            raise TypeError(
                f"scales: expected a policy, its name or None for {name!r}, got {policy!r}; for a number: Fixed(number)"
            )
    return policies


def _policy_name(policy: Any) -> str:
    if isinstance(policy, str):
        return policy
    return "off" if policy in (None, Fixed()) else described(policy)


def _assemble(plan: ProfilePlan, tables: dict[str, pd.DataFrame], kept: list[RunResult], measured: Measured) -> Profile:
    """`kept` is in the order of the plan."""
    runs = list(plan.runs())
    timed = pd.DataFrame([{**run.keys, "seconds": each.seconds} for run, each in zip(runs, kept, strict=True)])
    pairs = list(zip(runs, kept, strict=True))
    pictures = {(run.size, run.policy, run.seed): each.pictures for run, each in pairs if each.pictures}
    maps = {run.policy: dict(each.maps) for run, each in pairs if each.maps is not None}
    response = tables.get("response")
    if response is not None and response.empty:
        response = None
    return Profile(plan, tables["entropy"], timed, pictures, maps, tables["heads"], response, notes(plan, measured))


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    some = [table for table in tables if not table.empty]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame()
