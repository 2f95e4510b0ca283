"""`ea.profile`: a profile in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from entropy_attn.integrations.diffusers.models import model_of
from entropy_attn.integrations.diffusers.target import denoiser_of
from entropy_attn.pipelines.sampling import takes_prompt
from entropy_attn.pipelines.sizes import fixed_size, size_multiple, train_size
from entropy_attn.profiling.layers import Measured
from entropy_attn.profiling.plan import DEFAULT_PROMPTS, ProfilePlan, Run, Size, described
from entropy_attn.profiling.result import Profile, RunResult
from entropy_attn.profiling.run import check_plan, run_once
from entropy_attn.profiling.store import Store
from entropy_attn.scale import Fixed, Policy
from entropy_attn.scale.text import parse_scale

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
    out: str | Path | None = None,
    figures: bool = True,
    resume: bool = False,
    title: str | None = None,
    about: Mapping[str, Any] | None = None,
    on_step: Callable[[Run], None] | None = None,
    on_run: Callable[[Run, float | None, int, int], None] | None = None,
) -> Profile:
    """Measure the attention entropy of a pipeline at several picture sizes, under several scale policies.

    Every run is one generation of all prompts. It serves each denoiser of docs/models.md, on whatever device the
    pipeline is, offloaded or not; the pipeline is left as it was. Entropies are in nats, of the queries of the
    picture. What would fail or measure nothing is refused before anything is sampled.

        result = ea.profile(pipe, sizes=[512, (768, 512)], scales=["off", ea.scale.LogN(strength=0.5)], out="profile")
        result.summary["slope"]["off"]["median"]  # nats a layer's entropy grows by, per unit of ln N

    Args:
        sizes: picture sizes in pixels, a number for a square or (height, width); None is 0.5 to 2 times the training
            size. Layers can be compared with their own value at the training size only if that is among them.
        scales: policies, or their names with settings as on the command line ("logn:strength=0.5"); None among them, or
            "off", is the model's own scale. A mapping gives the names that tables and figures show. None is
            ("off", "logn"), or "off" alone for a model without self or joint attention.
        prompts: of the pictures, which make one batch; None is a few built-in ones, or none for a pipeline that takes
            no text or is given embeddings by `arguments`.
        negative_prompt: for every prompt. Refused where the pipeline would pass over it.
        seeds: of the starting noise.
        steps: denoising steps.
        guidance_scale: None is the pipeline's own.
        layers: what the policies are for, as in `ea.apply`.
        arguments: further arguments of the pipeline's call, such as {"num_frames": 9}.
        heads: keep a row of every head at every step in `entropy`, instead of statistics over heads.
        pictures: decode and keep the pictures; without, a VAE is not run at all.
        out: folder to write into, made if missing; None writes nothing. Every finished run is in it at once, so that
            nothing finished is lost when one is interrupted or fails.
        figures: draw the figures into `out`; needs matplotlib.
        resume: go on with the unfinished profile of the same plan in `out`.
        title: what figures call the model; None is the class of the pipeline.
        about: further facts for plan.json, with which `resume` has to agree.
        on_step: called with the run after each denoising step.
        on_run: called with (run, seconds, number, of how many) after each run; seconds are None for one that was
            finished before.

    Returns:
        A `Profile`: data frames, pictures, maps, `summary`.

    Raises:
        ValueError: an argument, a size, a policy or the plan in `out` is not usable; the message names it.
        ea.Unsupported: the pipeline cannot be routed.
        ImportError: pandas is missing, or matplotlib where figures are wanted.
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
        about=about,
    )
    if resume and out is None:
        raise ValueError("resume=True: give the folder of the profile as out=")
    measured = check_plan(pipe, plan)
    if out is not None and figures:
        import matplotlib  # noqa: F401  (missing, it is missed now and not at the end)
    store = None if out is None else Store(Path(out), plan, resume)
    kept: list[RunResult] = []
    runs = list(plan.runs())
    for number, run in enumerate(runs, start=1):
        if store is not None and run in store:
            seconds = None
        else:
            result = run_once(pipe, plan, run, measured, on_step)
            seconds = result.seconds
            if store is None:
                kept.append(result)
            else:
                store.add(run, result)
        if on_run is not None:
            on_run(run, seconds, number, len(runs))
    if store is None:
        tables = {name: pd.concat([getattr(r, name) for r in kept], ignore_index=True) for name in ("entropy", "heads")}
    else:
        tables, kept = store.read()
    found = _put_together(plan, runs, tables, kept, measured)
    if store is not None:
        from entropy_attn.profiling.files import save_all

        save_all(found, store, title or type(pipe).__name__, figures)
    return found


def make_plan(
    pipe: Any, *, sizes: Any, scales: Any, prompts: Any, arguments: Any, about: Any, **others: Any
) -> ProfilePlan:
    """The plan, with everything that was left to us filled in."""
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
            raise TypeError(f"sizes={given!r}: a list of sizes is needed")
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
        raise TypeError(f"sizes: {size!r} is no size: a whole number of pixels, or (height, width), is needed")
    return pair[0], pair[1]


def _policies(denoiser: Any, given: Any) -> dict[str, Any]:
    if given is None:
        model = model_of(denoiser)
        attends = model is None or any(rule.kind in ("self", "joint", "call") for rule in model.layers)
        given = ("off", "logn") if attends else ("off",)
    if isinstance(given, str):
        raise TypeError(f"scales={given!r}: a list of policies is needed, such as [{given!r}]")
    if not isinstance(given, Mapping):
        named = [(_policy_name(policy), policy) for policy in given]
        names = [name for name, _ in named]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"scales: {twice!r} is given twice: a mapping gives each a name")
        given = dict(named)
    policies = {str(name): parse_scale(policy) if isinstance(policy, str) else policy for name, policy in given.items()}
    for name, policy in policies.items():
        if policy is not None and not callable(policy):
            raise TypeError(
                f"scales: {name}={policy!r}: a policy, its name or None is needed; a number is Fixed(number)"
            )
    return policies


def _policy_name(policy: Any) -> str:
    if isinstance(policy, str):
        return policy
    return "off" if policy in (None, Fixed()) else described(policy)


def _put_together(
    plan: ProfilePlan, runs: list[Run], tables: dict[str, pd.DataFrame], kept: list[RunResult], measured: Measured
) -> Profile:
    # Those of a resumed profile are in the order of the plan, for runs are made in that order.
    timed = pd.DataFrame([{**run.keys, "seconds": each.seconds} for run, each in zip(runs, kept, strict=True)])
    pairs = list(zip(runs, kept, strict=True))
    pictures = {(run.size, run.policy, run.seed): each.pictures for run, each in pairs if each.pictures}
    maps = {run.policy: dict(each.maps) for run, each in pairs if each.maps is not None}
    notes = _notes(plan, measured)
    return Profile(plan, tables["entropy"], timed, pictures, maps, tables["heads"], notes)


def _notes(plan: ProfilePlan, measured: Measured) -> list[str]:
    notes = [f"{_layers(names)}: not measured, {reason}" for reason, names in _by_reason(measured.unmeasured).items()]
    notes += [f"{_layers(names)}: no map, {reason}" for reason, names in _by_reason(measured.without_map).items()]
    if measured.crosses:
        notes.append(
            "the entropies are those of cross-attention, whose keys are the text: N does not grow with the picture"
        )
    if plan.reference is None:
        notes.append("the model does not state its training size, so nothing is compared with it")
    elif plan.reference not in [tuple(size) for size in plan.sizes]:
        height, width = plan.reference
        notes.append(f"not compared with the training size, {height}x{width} px, which is not among the sizes")
    elif plan.baseline is None:
        notes.append(
            "compared with each policy's own value at the training size, for the model's own scale was not run"
        )
    return notes


def _by_reason(reasons: Mapping[str, str | None]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for layer, reason in reasons.items():
        found.setdefault(reason or "for no reason that is known", []).append(layer)
    return found


def _layers(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more layers"
