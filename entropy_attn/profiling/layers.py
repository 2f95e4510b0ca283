"""Which layers a profile will measure, worked out from the pipeline's structure before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entropy_attn.integrations.diffusers.models import Model, model_of
from entropy_attn.integrations.diffusers.survey import LayerReport, survey
from entropy_attn.integrations.diffusers.target import denoiser_of, pixels_a_token
from entropy_attn.profiling.plan import Size, size_name
from entropy_attn.scale import Fixed


@dataclass(frozen=True)
class Measured:
    """What there is to measure in a denoiser.

    layers: {name: "self" | "joint"}, or of a model with neither, "cross"; those that the tables and figures are about.
    without_map: the layers whose queries are in no known place of the picture, and why.
    unmeasured: attention layers without a softmax, and why.
    """

    model: Model
    layers: Mapping[str, str]
    without_map: Mapping[str, str]
    unmeasured: Mapping[str, str]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.layers.values()))

    @property
    def crosses(self) -> bool:
        return self.kinds == ("cross",)

    def grid(self, pipe: Any, size: Size, frames: int) -> tuple[int, ...] | None:
        """Tokens of the picture for `EntropyRecorder.spatial`; None in a UNet, whose layers differ."""
        if self.model.halves:
            return None
        side = pixels_a_token(pipe)
        return frames, size[0] // side, size[1] // side


def measured_layers(pipe: Any, sizes: list[Size], policies: Mapping[str, Any], layers: str) -> Measured:
    """The layers that will be measured at these sizes under these policies.

    Raises `ValueError` for a policy that some layer refuses, and for one that would change no layer at all; and what
    `ea.apply` raises for a model that cannot be routed.
    """
    denoiser = denoiser_of(pipe)
    model = model_of(denoiser)
    found: list[LayerReport] = []
    for size in sizes:
        for name, policy in policies.items():
            found = survey(pipe, size, scale=policy, layers=layers)
            for report in found:
                if report.kind is not None and report.refused is not None:
                    raise ValueError(f"scale {name!r} at {size_name(size)}: layer {report.layer}: {report.refused}")
    routed = [report for report in found if report.kind is not None]
    # Text that attends to itself has no part in the picture, and keeps its length at every size.
    picture = {r.layer: r.kind for r in routed if r.kind != "cross" and r.text_tokens != r.seqlen_k}
    chosen = picture or {report.layer: report.kind for report in routed if report.kind == "cross"}
    unmeasured = {report.layer: report.refused for report in found if report.kind is None}
    own = type(denoiser).__name__
    if not chosen:
        reasons = "; ".join(dict.fromkeys(filter(None, unmeasured.values()))) or "it has no attention layers"
        raise ValueError(f"{own} has no layer whose attention can be measured: {reasons}")
    if not picture and layers == "self":
        idle = [name for name, policy in policies.items() if policy not in (None, Fixed())]
        if idle:
            raise ValueError(
                f"scales={idle}: {own} has a softmax in its cross-attention alone, which layers='self' leaves as it "
                "is: give layers='cross' and policies with train_tokens=..., or the scale 'off' alone"
            )
    ragged = "the text of each prompt is as long as the prompt, so that the picture begins elsewhere in each"
    without_map = {name: ragged for name in chosen if (rule := model.rule(name)) is not None and rule.ragged}
    return Measured(model, chosen, without_map, unmeasured)
