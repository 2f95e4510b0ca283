"""Which layers a profile will measure; known from the structure of the pipeline before anything is sampled."""

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
    """What can be measured in a denoiser.

    Attributes:
        model: the row of the table of models.
        layers: {name: kind} of the layers that tables and figures show: "self" and "joint", or "cross" if there are
            neither.
        unmeasured: {name: reason} of attention layers without a softmax.
    """

    model: Model
    layers: Mapping[str, str]
    unmeasured: Mapping[str, str]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.layers.values()))

    @property
    def crosses(self) -> bool:
        return self.kinds == ("cross",)

    def grid(self, pipe: Any, size: Size, frames: int) -> tuple[int, ...] | None:
        """(frames, rows, columns) in tokens for `EntropyRecorder.spatial`; None in a UNet, whose layers differ."""
        if self.model.halves:
            return None
        side = pixels_a_token(pipe)
        return frames, size[0] // side, size[1] // side


def measured_layers(pipe: Any, sizes: list[Size], policies: Mapping[str, Any], layers: str) -> Measured:
    """The layers that will be measured at these sizes under these policies.

    Raises:
        ValueError: a layer refuses a policy, or a policy would change no layer.
        Unsupported: the model cannot be routed, as in `ea.apply`.
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
    # Text that attends to itself is not part of the image, and has the same length at every size.
    image = {r.layer: str(r.kind) for r in routed if r.kind != "cross" and r.text_tokens != r.seqlen_k}
    chosen = image or {report.layer: str(report.kind) for report in routed if report.kind == "cross"}
    unmeasured = {report.layer: report.refused or "" for report in found if report.kind is None}
    name_of_denoiser = type(denoiser).__name__
    if not chosen:
        reasons = "; ".join(dict.fromkeys(filter(None, unmeasured.values()))) or "it has no attention layers"
        raise ValueError(f"{name_of_denoiser} has no layer whose attention can be measured: {reasons}")
    if not image and layers == "self":
        idle = [name for name, policy in policies.items() if policy not in (None, Fixed())]
        if idle:
            raise ValueError(
                f"scales: expected only 'off', got {idle}: {name_of_denoiser} has a softmax only in cross-attention, "
                "which layers='self' does not select: use layers='cross' and policies with train_tokens=..."
            )
    return Measured(model, chosen, unmeasured)
