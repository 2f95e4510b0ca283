"""The branches of a batch, as recorders need to know them: found in the call's texts, or stated by the user."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from entropy_attn.integrations.diffusers.generation import TrackedCall
from entropy_attn.recorders.base import Parts, Recorder, UnknownParts
from entropy_attn.routing.policy_recorder import PolicyRecorder

# Pipelines with one of these run more than two guidance branches in a batch, and do not say which.
OTHER_GUIDANCE = ("do_perturbed_attention_guidance", "image_guidance_scale")


def parts_for(recorders: Sequence[Recorder], call: TrackedCall) -> Parts:
    """The parts of this call.

    Raises:
        UnknownParts: they cannot be found, and a recorder does not state them.
        ValueError: a recorder states others.
    """
    try:
        parts = call.parts()
    except UnknownParts as unknown:
        for recorder in recorders:
            if recorder.branches is None and isinstance(recorder, PolicyRecorder):
                raise UnknownParts(
                    f"{recorder.argument}={recorder.policy!r}: which rows are of the prompt is not known: {unknown}. "
                    f"{_other(recorder)}"
                ) from None
            if recorder.branches is None:
                name = type(recorder).__name__
                raise UnknownParts(
                    f"record={recorder!r}: which rows are of which branch is not known: {unknown}. Give "
                    f'{name}(branches=...), the names of the equal parts of every batch, such as ("uncond", "cond"), '
                    'or ("all",) for a single part'
                ) from None
        return Parts(("all",))
    for recorder in recorders:
        call.check_stated(recorder.branches, parts)
    return parts


def check_guidance(pipe: DiffusionPipeline | None, recorders: Sequence[Recorder]) -> None:
    """Refuse recorders that do not state the branches of a pipeline with other kinds of guidance, or of none at all."""
    for recorder in recorders:
        if pipe is None and isinstance(recorder, PolicyRecorder) and recorder.branches is None:
            raise ValueError(
                f"{recorder.argument}={recorder.policy!r}: needs the pipeline, to know which rows are of the prompt; "
                f"apply to the pipeline. {_other(recorder)}"
            )
    for name in OTHER_GUIDANCE:
        for recorder in recorders:
            if recorder.branches is not None or not hasattr(type(pipe), name):
                continue
            if isinstance(recorder, PolicyRecorder):
                raise ValueError(
                    f"{recorder.argument}={recorder.policy!r}: {type(pipe).__name__} has {name}, so which rows are of "
                    f"the prompt is not known. {_other(recorder)}"
                )
            raise ValueError(
                f"record={recorder!r}: {type(pipe).__name__} has {name}, so its batch may have more than two "
                f"parts; give {type(recorder).__name__}(branches=...) their names, in order"
            )


def _other(recorder: PolicyRecorder) -> str:
    """What to give instead of a policy, or a mix, for some of the rows."""
    if recorder.argument == "mix":
        return "Give a mix with branch=None, for all rows, or none"
    if getattr(recorder.policy, "gives_key_groups", False):
        return "Give the policy branch=None, for all rows"
    return "Give a policy for all rows, without needs_branches"
